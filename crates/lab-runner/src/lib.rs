//! Builds the lab kernel's image, runs it in an emulator, breaks the machine from outside, and reads what it reports.
