//! Files that are there completely or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::failure::Failure;

/// A file that is written and not yet visible under its name.
enum Staged<C> {
    /// A temporary file in the directory of the name.
    Temporary { file: NamedTempFile, target: PathBuf },
    /// Something that cannot be replaced: a device, a pipe.
    Device { contents: C, target: PathBuf },
}

/// Whether files can have names made from this one: it names no directory.
pub(crate) fn check_name(path: &Path) -> Result<(), Failure> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Failure::file(path, &io::ErrorKind::IsADirectory.into()));
    }
    Ok(())
}

/// Writes all of them or, if one cannot be written, none. Existing files are replaced; what a symbolic link leads to
/// is replaced, not the link.
pub(crate) fn write_all<C: AsRef<[u8]>>(files: Vec<(PathBuf, C)>) -> Result<(), Failure> {
    let mut staged = Vec::new();
    for (path, contents) in files {
        check_name(&path)?;
        staged.push(stage(&path, contents).map_err(|error| Failure::file(&path, &error))?);
    }
    for file in staged {
        let (result, target) = match file {
            Staged::Temporary { file, target } => {
                (file.persist(&target).map(drop).map_err(|e| e.error), target)
            }
            Staged::Device { contents, target } => {
                let opened = fs::OpenOptions::new().write(true).open(&target);
                (opened.and_then(|mut device| device.write_all(contents.as_ref())), target)
            }
        };
        result.map_err(|error| Failure::file(&target, &error))?;
    }
    Ok(())
}

fn stage<C: AsRef<[u8]>>(path: &Path, contents: C) -> io::Result<Staged<C>> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(metadata) = fs::metadata(&target) {
        if !metadata.is_file() {
            return Ok(Staged::Device { contents, target });
        }
        if metadata.permissions().readonly() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = Builder::new();
    builder.prefix(".smpcall-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As for any new file; what the user's mask forbids is taken away.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory).map_err(|error| plain(&error))?;
    file.write_all(contents.as_ref()).map_err(|error| plain(&error))?;
    Ok(Staged::Temporary { file, target })
}

/// The error without the name of the temporary file, which nobody asked for.
fn plain(error: &io::Error) -> io::Error {
    io::Error::from(error.kind())
}

/// The name with `suffix` before its extension: `a/b.svg` and `-then` give `a/b-then.svg`.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(suffix);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_goes_before_the_extension() {
        let named = |path: &str| with_suffix(Path::new(path), "-then");
        assert_eq!(named("a/b.svg"), Path::new("a/b-then.svg"));
        assert_eq!(named("b"), Path::new("b-then"));
        assert_eq!(named("a.b.svg"), Path::new("a.b-then.svg"));
    }

    #[test]
    fn if_one_cannot_be_written_none_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let good = directory.path().join("good.svg");
        let bad = directory.path().join("missing/bad.svg");
        let result = write_all(vec![(good.clone(), "x"), (bad, "y")]);
        assert!(matches!(result, Err(Failure::Output(_))));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0, "nothing is left behind");
        write_all(vec![(good.clone(), "x")]).expect("is written");
        write_all(vec![(good.clone(), "z")]).expect("is replaced");
        assert_eq!(fs::read_to_string(&good).expect("readable"), "z");
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_written_to_and_a_link_stays_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::write(&target, "old").expect("is written");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        write_all(vec![(link.clone(), "new"), ("/dev/null".into(), "gone")]).expect("is written");
        assert_eq!(fs::read_to_string(&target).expect("readable"), "new");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
    }
}
