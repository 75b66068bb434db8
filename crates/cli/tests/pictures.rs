//! The pictures of the README are what the command draws today.

mod common;

use std::fs;
use std::path::Path;

use common::smpcall_in;

/// Draws both pictures of the README and compares one with the file under `docs`, byte for byte.
#[track_caller]
fn is_what_the_command_draws(name: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let run = smpcall_in(
        directory.path(),
        &["replay", "lost-call", "--seed", "1", "--quiet", "--timeline", "lost-call.svg"],
    );
    assert_eq!(run.code, 0, "{}", run.err);
    let drawn = fs::read_to_string(directory.path().join(name)).expect("the command wrote it");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    let kept = fs::read_to_string(kept).unwrap_or_default();
    // Not `assert_eq`: two whole pictures would hide what to do.
    assert!(
        drawn == kept,
        "docs/{name} is not what the command draws; renew it from the top of the repository, and look at it:\n\
         cargo run --release -p smpcall-cli -- replay lost-call --seed 1 --timeline docs/lost-call.svg"
    );
}

#[test]
fn the_picture_of_then_is_what_the_command_draws() {
    is_what_the_command_draws("lost-call-then.svg");
}

#[test]
fn the_picture_of_now_is_what_the_command_draws() {
    is_what_the_command_draws("lost-call-now.svg");
}
