//! The notes of a dump, kept: who wrote them, of what type, and their bytes.

use smpcall_vmcore::{Notes, vmcoreinfo};

/// More bytes of notes than this are refused: 8,192 CPUs with everything that is known to be noted of one take 8 MiB.
pub(crate) const MAXIMUM_BYTES: u64 = 64 << 20;

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who defines the type: `CORE`, `VMCOREINFO`, `QEMU`, `SMPCALL`.
    pub owner: String,
    /// What it is, as its owner counts.
    pub kind: u32,
    /// The rest.
    pub descriptor: Vec<u8>,
}

/// Appends the notes in these bytes. What cannot be read is remarked on, and ends them.
pub(crate) fn append(notes: &mut Vec<Note>, bytes: &[u8], alignment: u64, remarks: &mut Vec<String>) {
    for note in Notes::aligned(bytes, alignment) {
        match note {
            Ok(note) => notes.push(Note {
                owner: String::from_utf8_lossy(note.owner).into_owned(),
                kind: note.kind,
                descriptor: note.descriptor.to_vec(),
            }),
            Err(error) => remarks.push(format!("{error}; notes behind it are not read")),
        }
    }
}

/// The text of the `VMCOREINFO` note, up to its padding.
pub(crate) fn vmcoreinfo(notes: &[Note]) -> Option<String> {
    let note = notes.iter().find(|note| note.owner == vmcoreinfo::OWNER)?;
    Some(text(&note.descriptor)).filter(|text| !text.is_empty())
}

/// The text in these bytes, up to the first zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
