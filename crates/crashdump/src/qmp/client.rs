//! QMP over a Unix socket: one JSON document a line, in both directions. Source: QEMU, `docs/interop/qmp-spec.rst`.

use std::io::{BufRead, BufReader, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long a monitor may take for one answer. Each is a matter of milliseconds, but for a host under load.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer that is longer is none: the registers of 4,096 CPUs are 8 MiB.
const MAXIMUM_ANSWER: u64 = 64 << 20;

/// So many events between a command and its answer, and it is not coming.
const MAXIMUM_EVENTS: usize = 10_000;

/// The monitor's end of a socket. Errors are the rest of a sentence that begins with "the monitor".
#[derive(Debug)]
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
    version: String,
    /// Of the command that is under way.
    number: u64,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| {
            format!(
                "cannot be reached: {error}; is QEMU running with -qmp unix:{},server=on,wait=off?",
                socket.display()
            )
        })?;
        let patience =
            stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        patience.map_err(|error| format!("cannot be talked to: {error}"))?;
        let mut client = Self { reader: BufReader::new(stream), version: String::new(), number: 0 };
        let greeting = client.receive().map_err(|error| {
            format!(
                "{error} instead of a greeting; it serves one client at a time: is another one connected?"
            )
        })?;
        let version = &greeting["QMP"]["version"]["qemu"];
        if !version.is_object() {
            return Err(
                "does not greet as QMP does; is this the socket of the human monitor, or of something else?"
                    .into(),
            );
        }
        client.version = format!("{}.{}.{}", version["major"], version["minor"], version["micro"]);
        client.execute("qmp_capabilities", &json!({}))?;
        Ok(client)
    }

    /// QEMU's version: "10.0.2".
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Sends a command, and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.number += 1;
        let number = self.number;
        let line = json!({ "execute": command, "arguments": arguments, "id": number }).to_string() + "\n";
        let sent = self.reader.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| format!("does not take the command {command}: {error}"))?;
        for _ in 0..MAXIMUM_EVENTS {
            let mut answer = self.receive().map_err(|error| format!("{error} to the command {command}"))?;
            // Events come in between, and late answers to a command that was given up.
            if answer["id"].as_u64().is_some_and(|id| id != number) || answer.get("event").is_some() {
                continue;
            }
            if let Some(error) = answer["error"]["desc"].as_str() {
                return Err(format!("refuses the command {command}: {error}"));
            }
            return Ok(answer["return"].take());
        }
        Err(format!("does not answer the command {command}, it only tells events"))
    }

    /// Sends a command of the human monitor, and returns what it prints.
    pub(crate) fn human(&mut self, command: &str) -> Result<String, String> {
        match self.execute("human-monitor-command", &json!({ "command-line": command }))? {
            Value::String(text) => Ok(text),
            other => Err(format!("answers the command {command} with {other} instead of text")),
        }
    }

    fn receive(&mut self) -> Result<Value, String> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(MAXIMUM_ANSWER).read_until(b'\n', &mut line);
        match read {
            Err(error) => Err(format!("gives no answer ({error})")),
            Ok(_) if line.last() != Some(&b'\n') => Err("hangs up, or talks without end,".into()),
            Ok(_) => {
                serde_json::from_slice(&line).map_err(|_| "answers with something that is not JSON".into())
            }
        }
    }
}
