//! Freezes a virtual CPU through QEMU's stub of a debugger.
//!
//! The stub speaks gdb's remote serial protocol (the manual of gdb, appendix E). It stops every virtual CPU when somebody
//! connects, and lets those go on that `vCont` names: leaving one out freezes it. It knows virtual CPUs as threads,
//! numbered from 1.

use std::io::{self, Read, Write};
use std::time::Duration;

/// How long the stub may take to answer, of the clock: it does so between two turns of the emulator.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The longest packet that is read. QEMU's are up to 4 KiB (`MAX_PACKET_LENGTH` in its `gdbstub/internals.h`).
const LONGEST: usize = 64 << 10;

/// The longest packet that QEMU takes.
const LONGEST_COMMAND: usize = 4095;

/// The stub, with every virtual CPU stopped or all but one going on.
pub(crate) struct Debugger<S> {
    stream: S,
    running: bool,
}

impl<S: Read + Write> Debugger<S> {
    /// Begins to talk on a connection that was just made: every virtual CPU is stopped.
    pub(crate) fn new(stream: S) -> io::Result<Self> {
        let mut debugger = Self { stream, running: false };
        let supported = debugger.ask("qSupported:vContSupported+")?;
        if !supported.split(';').any(|feature| feature == "vContSupported+") {
            let actions = debugger.ask("vCont?")?;
            if !actions.split(';').any(|action| action == "c") {
                return Err(protocol("it cannot let single CPUs go on"));
            }
        }
        Ok(debugger)
    }

    /// Lets every virtual CPU go on but this one, counted from 0.
    pub(crate) fn freeze(&mut self, cpu: u32) -> io::Result<()> {
        let threads = self.threads()?;
        let frozen = cpu.checked_add(1).filter(|thread| threads.contains(thread));
        let frozen = frozen.ok_or_else(|| protocol(&format!("it has no CPU {cpu}")))?;
        let others = threads.iter().filter(|&&thread| thread != frozen);
        let command: String =
            others.fold("vCont".into(), |command, thread| format!("{command};c:{thread:x}"));
        if command == "vCont" {
            return Err(protocol("there is only one CPU"));
        }
        if command.len() > LONGEST_COMMAND {
            return Err(protocol("there are more CPUs than it takes in one command"));
        }
        self.send(&command)?;
        self.running = true;
        Ok(())
    }

    /// Lets all go on, and says goodbye.
    pub(crate) fn thaw(mut self) -> io::Result<()> {
        if self.running {
            self.stream.write_all(&[0x03])?;
            let stopped = self.receive()?;
            if !is_stop(&stopped) {
                return Err(protocol(&format!("it does not stop: {stopped}")));
            }
        }
        match self.ask("D")?.as_str() {
            "OK" => Ok(()),
            other => Err(protocol(&format!("it does not let go: {other}"))),
        }
    }

    /// The threads that it has.
    fn threads(&mut self) -> io::Result<Vec<u32>> {
        let mut threads = vec![];
        let mut answer = self.ask("qfThreadInfo")?;
        while let Some(list) = answer.strip_prefix('m') {
            for thread in list.split(',') {
                let number = u32::from_str_radix(thread, 16).ok();
                threads.push(number.ok_or_else(|| protocol(&format!("a thread is named {thread}")))?);
            }
            if threads.len() > LONGEST {
                return Err(protocol("it never ends its list of threads"));
            }
            answer = self.ask("qsThreadInfo")?;
        }
        Ok(threads)
    }

    /// The answer to a command. What says that the machine has stopped is none: QEMU 7.2 says so when somebody connects.
    fn ask(&mut self, command: &str) -> io::Result<String> {
        self.send(command)?;
        loop {
            let answer = self.receive()?;
            if !is_stop(&answer) {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, command: &str) -> io::Result<()> {
        self.stream.write_all(packet(command).as_bytes())?;
        self.stream.flush()
    }

    /// The next packet, acknowledged. Its checksum is checked: a socket loses nothing, so a wrong one is the end.
    fn receive(&mut self) -> io::Result<String> {
        while self.byte()? != b'$' {}
        let (mut data, mut sum) = (vec![], 0_u8);
        loop {
            match self.byte()? {
                b'#' => break,
                _ if data.len() >= LONGEST => return Err(protocol("its answer does not end")),
                byte => {
                    sum = sum.wrapping_add(byte);
                    data.push(byte);
                }
            }
        }
        let digits = [self.byte()?, self.byte()?];
        let said = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if said != Some(sum) {
            return Err(protocol("its answer is damaged"));
        }
        self.stream.write_all(b"+")?;
        unpacked(&data)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

/// Whether a packet says that the machine has stopped, and by which signal.
fn is_stop(packet: &str) -> bool {
    packet
        .strip_prefix(['T', 'S'])
        .and_then(|rest| rest.get(..2))
        .is_some_and(|signal| signal.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

fn protocol(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn packet(command: &str) -> String {
    let sum = command.bytes().fold(0_u8, u8::wrapping_add);
    format!("${command}#{sum:02x}")
}

/// Undoes the protocol's escapes and run lengths.
fn unpacked(data: &[u8]) -> io::Result<String> {
    let mut out: Vec<u8> = vec![];
    let mut bytes = data.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'}' => out.push(bytes.next().ok_or_else(|| protocol("its answer is cut"))? ^ 0x20),
            b'*' => {
                let count = bytes.next().and_then(|count| count.checked_sub(29));
                let last = out.last().copied();
                let (count, last) = count.zip(last).ok_or_else(|| protocol("its answer is damaged"))?;
                out.extend(std::iter::repeat_n(last, count.into()));
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).map_err(|_| protocol("its answer is no text"))
}

/// Connects to the stub at this socket.
#[cfg(unix)]
pub(crate) fn connect(socket: &std::path::Path) -> io::Result<Debugger<std::os::unix::net::UnixStream>> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Debugger::new(stream)
}

/// There is no such socket here.
#[cfg(not(unix))]
pub(crate) fn connect(_: &std::path::Path) -> io::Result<Debugger<std::net::TcpStream>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A stub that answers from a list, and what it was told.
    struct Stub {
        answers: io::Cursor<Vec<u8>>,
        told: Vec<u8>,
    }

    impl Stub {
        fn new(answers: &[&str]) -> Self {
            let answers = answers.iter().fold(String::new(), |text, answer| text + "+" + &packet(answer));
            Self { answers: io::Cursor::new(answers.into()), told: vec![] }
        }
    }

    impl Read for Stub {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.answers.read(into)
        }
    }

    impl Write for Stub {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.told.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_threads_but_one_go_on() {
        let stub = Stub::new(&["PacketSize=1000;vContSupported+", "m01,02,03", "m0a", "l"]);
        let mut debugger = Debugger::new(stub).expect("talks");
        debugger.freeze(1).expect("freezes");
        let told = String::from_utf8(debugger.stream.told.clone()).expect("text");
        assert!(told.contains("$vCont;c:1;c:3;c:a#"), "{told}");
    }

    #[test]
    fn a_word_that_the_machine_has_stopped_is_no_answer() {
        let stub = Stub::new(&["T02thread:01;", "TracepointSource+;vContSupported+", "m01,02", "l"]);
        let mut debugger = Debugger::new(stub).expect("talks");
        debugger.freeze(0).expect("freezes");
        assert!(is_stop("S05") && !is_stop("T") && !is_stop("Tx2") && !is_stop("OK"));
    }

    #[test]
    fn thawing_stops_all_and_lets_go() {
        let stub = Stub::new(&["vContSupported+", "m01,02", "l", "T02thread:01;", "OK"]);
        let mut debugger = Debugger::new(stub).expect("talks");
        debugger.freeze(0).expect("freezes");
        debugger.thaw().expect("thaws");
        let stub = Stub::new(&["vContSupported+", "m01,02", "l", "W00"]);
        let mut debugger = Debugger::new(stub).expect("talks");
        debugger.freeze(0).expect("freezes");
        assert!(debugger.thaw().is_err(), "the machine has ended");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_not_frozen() {
        for cpu in [2, u32::MAX] {
            let stub = Stub::new(&["vContSupported+", "m01,02", "l"]);
            assert!(Debugger::new(stub).expect("talks").freeze(cpu).is_err());
        }
        let stub = Stub::new(&["vContSupported+", "m01", "l"]);
        assert!(Debugger::new(stub).expect("talks").freeze(0).is_err(), "nobody is left");
    }

    #[test]
    fn a_stub_that_cannot_let_single_cpus_go_on_is_refused() {
        assert!(Debugger::new(Stub::new(&["PacketSize=1000", ""])).is_err());
        assert!(Debugger::new(Stub::new(&["PacketSize=1000", "vCont;c;C;s;S"])).is_ok());
    }

    #[test]
    fn damaged_answers_are_no_answers() {
        for wrong in ["$OK#00", "$OK", "", "$}#7d", "$*a#8b"] {
            let mut stub = Stub::new(&[]);
            stub.answers = io::Cursor::new(wrong.as_bytes().to_vec());
            assert!(Debugger { stream: stub, running: false }.receive().is_err(), "{wrong}");
        }
        assert_eq!(unpacked(b"a* b}\x03").expect("unpacks"), "aaaab#");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut stub = Stub::new(&[]);
            stub.answers = io::Cursor::new(bytes);
            let _ = Debugger { stream: stub, running: false }.receive();
        }

        #[test]
        fn what_is_packed_is_read_again(text in "[a-zA-Z0-9;:,=]{0,80}") {
            let mut debugger = Debugger { stream: Stub::new(&[&text]), running: false };
            prop_assert_eq!(debugger.receive().expect("reads"), text);
        }
    }
}
