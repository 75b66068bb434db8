//! The image: found, or built.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use object::LittleEndian;
use object::elf::{FileHeader64, NoteType, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use serde_json::Value;

use crate::error::StartError;

/// The target that the image is built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// How to build it.
pub const BUILD: &str = "cargo build -p smpcall-lab --release --target x86_64-unknown-none";

/// The package and its binary.
const PACKAGE: &str = "smpcall-lab";

/// The note in which an image names its PVH entry: `XEN_ELFNOTE_PHYS32_ENTRY` of the owner `Xen` (Xen's
/// `public/elfnote.h`).
pub(crate) const PVH_ENTRY: NoteType = NoteType(18);

/// Finds the image, or builds it: the file that is named, or one beside this program, or what the workspace around the
/// current directory or the one that this program was built in makes of its source. `note` is told what takes time.
///
/// # Errors
/// There is none, and none can be built.
pub fn find(named: Option<&Path>, note: &mut dyn FnMut(&str)) -> Result<PathBuf, StartError> {
    if let Some(path) = named {
        let bytes =
            fs::read(path).map_err(|error| StartError::ImageUnreadable { path: path.to_owned(), error })?;
        if !is_image(&bytes) {
            return Err(StartError::NotAnImage { path: path.to_owned() });
        }
        return Ok(path.to_owned());
    }
    if let Some(path) = beside_this_program() {
        return Ok(path);
    }
    let workspace = env::current_dir().ok().and_then(|directory| above(&directory)).or_else(compiled_in);
    build(&workspace.ok_or(StartError::NoImage)?, note)
}

/// What is built for the host has the same name in the same place: it has no PVH entry.
fn beside_this_program() -> Option<PathBuf> {
    let path = env::current_exe().ok()?.parent()?.join(PACKAGE);
    is_image(&fs::read(&path).ok()?).then_some(path)
}

fn is_workspace(directory: &Path) -> bool {
    directory.join("crates/lab/Cargo.toml").is_file() && directory.join("Cargo.toml").is_file()
}

fn above(directory: &Path) -> Option<PathBuf> {
    directory.ancestors().find(|directory| is_workspace(directory)).map(Path::to_owned)
}

fn compiled_in() -> Option<PathBuf> {
    above(Path::new(env!("CARGO_MANIFEST_DIR")))
}

/// Whether these bytes are an ELF file with a PVH entry.
pub(crate) fn is_image(bytes: &[u8]) -> bool {
    has_pvh_entry(bytes).unwrap_or(false)
}

fn has_pvh_entry(bytes: &[u8]) -> Option<bool> {
    let header = FileHeader64::<LittleEndian>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, bytes).ok()? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, bytes).ok()? else { continue };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Xen" && note.n_type(endian) == PVH_ENTRY {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// Builds it.
fn build(workspace: &Path, note: &mut dyn FnMut(&str)) -> Result<PathBuf, StartError> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let in_workspace = |program: &str| {
        let mut command = Command::new(program);
        // What is meant for the host's programs would replace what the workspace says of this target.
        command.current_dir(workspace).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    };
    if !has_target(in_workspace("rustc")) {
        note(&format!("adding the target {TARGET} with rustup"));
        let added = run(in_workspace("rustup").args(["target", "add", TARGET]), "rustup")?;
        if !added.status.success() {
            return Err(StartError::NoTarget { said: last_line(&added.stderr) });
        }
    }
    note("building the lab kernel's image");
    let built = run(
        in_workspace(&cargo).args(BUILD.split(' ').skip(1)).args([
            "--locked",
            "--quiet",
            "--message-format=json-render-diagnostics",
        ]),
        &cargo,
    )?;
    if !built.status.success() {
        return Err(StartError::BuildFailed { said: first_error(&built.stderr) });
    }
    executable(&built.stdout)
        .ok_or_else(|| StartError::BuildFailed { said: "cargo names no executable".into() })
}

/// Whether the compiler has this target's libraries. Who has no rustup may have them all the same.
fn has_target(mut rustc: Command) -> bool {
    let output = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let Ok(output) = output else { return false };
    output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
}

fn run(command: &mut Command, tool: &str) -> Result<Output, StartError> {
    command.output().map_err(|error| StartError::NoTool { tool: tool.to_owned(), error })
}

/// The executable that cargo's messages name.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    let messages = String::from_utf8_lossy(messages);
    let of_package =
        |message: &Value| message["target"]["name"] == PACKAGE && message["executable"].is_string();
    let message = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find(of_package)?;
    Some(PathBuf::from(message["executable"].as_str()?))
}

fn first_error(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let first = text.lines().find(|line| line.starts_with("error"));
    first.map_or_else(|| last_line(stderr), str::to_owned)
}

/// The last line that is not empty.
pub(crate) fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why").trim().to_owned()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A 64-bit ELF file that has one note in it and nothing else.
    pub(crate) fn elf(owner: [u8; 4], kind: NoteType) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2_u16, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1_u32.to_le_bytes());
        for word in [0_u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 1, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for word in [PT_NOTE.0, 4] {
            file.extend(word.to_le_bytes());
        }
        for word in [120_u64, 0, 0, 24, 24, 4] {
            file.extend(word.to_le_bytes());
        }
        for word in [4_u32, 8, kind.0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(owner);
        file.extend(0x10_0000_u64.to_le_bytes());
        file
    }
}

#[cfg(test)]
mod tests {
    use super::testing::elf;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_image_is_known_by_its_pvh_entry() {
        assert!(is_image(&elf(*b"Xen\0", PVH_ENTRY)));
        assert!(!is_image(&elf(*b"GNU\0", PVH_ENTRY)));
        assert!(!is_image(&elf(*b"Xen\0", NoteType(3))));
        let this = fs::read(env::current_exe().expect("a test")).expect("readable");
        assert!(!is_image(&this), "what is built for the host is none");
    }

    #[test]
    fn a_file_that_is_none_or_not_there_is_named() {
        let mut note = |_: &str| panic!("nothing is built");
        let this = env::current_exe().expect("a test");
        let error = find(Some(&this), &mut note).expect_err("is no image");
        assert!(matches!(&error, StartError::NotAnImage { path } if *path == this), "{error}");
        let error = find(Some(Path::new("/nowhere/lab")), &mut note).expect_err("is not there");
        assert!(error.to_string().contains("/nowhere/lab"), "{error}");
    }

    #[test]
    fn the_executable_is_the_one_that_cargo_names() {
        let messages = br#"{"reason":"compiler-artifact","target":{"name":"smpcall"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"smpcall-lab"},"executable":"t/release/smpcall-lab"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("t/release/smpcall-lab")));
        assert_eq!(executable(b"{}"), None);
    }

    #[test]
    fn of_many_errors_the_first_is_told() {
        assert_eq!(
            first_error(b"warning: x\nerror[E0425]: cannot find y\n --> z\nerror: aborting\n"),
            "error[E0425]: cannot find y"
        );
        assert_eq!(first_error(b"something else\n\n"), "something else");
        assert_eq!(first_error(b""), "it does not say why");
    }

    #[test]
    fn the_workspace_is_found_from_any_place_in_it() {
        let inside = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        assert_eq!(above(&inside), compiled_in());
        assert_eq!(above(Path::new("/")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_image_or_not(cut in 0_usize..144, place in 0_usize..144, byte in any::<u8>()) {
            let mut file = elf(*b"Xen\0", PVH_ENTRY);
            if let Some(old) = file.get_mut(place) {
                *old = byte;
            }
            file.truncate(cut);
            let _ = is_image(&file);
        }
    }
}
