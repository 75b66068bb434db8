//! `smpcall lab` where no machine is to be had: what it says then. (What the machine does: `.ci/lab`.)

mod common;

use common::{Run, command, smpcall};

/// The command with no QEMU anywhere.
fn without_qemu(arguments: &[&str]) -> Run {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = command(arguments);
    command.env("PATH", directory.path()).env_remove("SMPCALL_QEMU");
    common::seen(&command.output().expect("the command starts"))
}

fn with_qemu(program: &str, arguments: &[&str]) -> Run {
    common::seen(&command(arguments).env("SMPCALL_QEMU", program).output().expect("the command starts"))
}

#[test]
fn without_qemu_it_names_the_package_to_install() {
    without_qemu(&["lab"]).is_refused(3, "install the package qemu-system-x86");
    without_qemu(&["lab", "calls", "--json"]).is_refused(3, "no qemu-system-x86_64 in PATH");
}

#[test]
fn without_bochs_it_says_so() {
    without_qemu(&["lab", "--machine", "bochs"]).is_refused(3, "use --machine qemu");
}

#[test]
fn what_the_variable_names_must_be_qemu() {
    with_qemu("/nowhere/qemu", &["lab"]).is_refused(3, "/nowhere/qemu cannot be started");
}

#[test]
fn what_makes_no_sense_is_refused_before_a_machine_is_looked_for() {
    let refused = |arguments: &[&str], words: &str| without_qemu(arguments).is_refused(2, words);
    refused(&["lab", "call"], "no such suite: call; known: calls, posts,");
    refused(&["lab", "--cpus", "0"], "1 to 512 CPUs");
    refused(&["lab", "--cpus", "256", "--apic", "xapic"], "at most 255 CPUs");
    refused(&["lab", "--apic", "x3apic"], "there are xapic and x2apic");
    refused(&["lab", "--icount", "--accel", "kvm"], "without --accel kvm");
    refused(&["lab", "--drop", "1.5"], "a probability is a number from 0 to 1");
    refused(&["lab", "calls", "--vmcore", "f"], "name that suite");
}

#[test]
fn the_help_names_the_suites() {
    let run = smpcall(&["lab", "--help"]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("conformance") && run.out.contains("SMPCALL_QEMU"), "{}", run.out);
}
