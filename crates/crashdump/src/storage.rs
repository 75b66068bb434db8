//! Where the bytes of a dump are: a file, a file in flattened form, or memory.
//!
//! Files are read with `pread`, not mapped, for three reasons. A mapped file that somebody cuts off while it is read
//! ends the process (SIGBUS); a mapped page counts as memory of the process for as long as it is mapped, and the
//! kernel maps sixteen of them at each fault; and `/proc/kcore` cannot be mapped at all. What is read often is in the
//! [cache](crate::cache) anyway.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that can be read at any offset.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Reads as many bytes as `into` has room for. Fewer only if the storage ends before.
    ///
    /// # Errors
    /// What the operating system says.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// How many bytes there are; `u64::MAX` if that cannot be known (`/proc/kcore`).
    fn length(&self) -> u64;
}

/// A file.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    length: u64,
}

impl FileStorage {
    /// The file, with the length that it has now.
    ///
    /// # Errors
    /// If its length cannot be found out.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        // Block devices say zero here; a dump can be written to one.
        let length = if metadata.is_file() {
            metadata.len()
        } else {
            io::Seek::seek(&mut &file, io::SeekFrom::End(0))?
        };
        Ok(Self { file, length })
    }

    /// The file, whose length says nothing.
    pub fn endless(file: File) -> Self {
        Self { file, length: u64::MAX }
    }
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        // Offsets are signed for the operating system: beyond that no file has anything.
        while done < into.len() && offset.checked_add(done as u64).is_some_and(|at| i64::try_from(at).is_ok())
        {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Storage for Vec<u8> {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or(&[]);
        let read = rest.len().min(into.len());
        into[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn length(&self) -> u64 {
        self.len() as u64
    }
}
