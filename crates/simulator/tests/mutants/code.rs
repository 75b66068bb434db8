//! The text of the code that ships: what mutants are made of.

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        /// Each file's name, as its path ends, and its text.
        pub(crate) const FILES: &[(&str, &str)] = &[$(($path, include_str!(concat!("../../../", $path)))),*];
    };
}

files![
    "smpcall/src/attend.rs",
    "smpcall/src/call.rs",
    "smpcall/src/caller.rs",
    "smpcall/src/crash.rs",
    "smpcall/src/cross_call.rs",
    "smpcall/src/global.rs",
    "smpcall/src/hotplug/control.rs",
    "smpcall/src/hotplug/down.rs",
    "smpcall/src/hotplug/fence.rs",
    "smpcall/src/hotplug/up.rs",
    "smpcall/src/ladder.rs",
    "smpcall/src/lists.rs",
    "smpcall/src/lockup.rs",
    "smpcall/src/many.rs",
    "smpcall/src/mark.rs",
    "smpcall/src/open.rs",
    "smpcall/src/pending.rs",
    "smpcall/src/post.rs",
    "smpcall/src/probe.rs",
    "smpcall/src/rendezvous.rs",
    "smpcall/src/serve.rs",
    "smpcall/src/work.rs",
    "local-apic/src/driver.rs",
    "local-apic/src/hand_over.rs",
    "local-apic/src/idle.rs",
    "local-apic/src/inert_gates.rs",
    "local-apic/src/send.rs",
];

/// The path and the text of the file whose path ends like this.
pub(crate) fn file(name: &str) -> (&'static str, &'static str) {
    let found = FILES.iter().find(|(path, _)| path.ends_with(name));
    *found.unwrap_or_else(|| panic!("no file of the code ends like {name}"))
}
