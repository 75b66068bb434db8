//! Extracts of dumps of real kernels, against what those kernels said of themselves before they were dumped: addresses
//! from `/proc/kallsyms`, stacks from `/proc/PID/stack`. What each is of stands in `fixtures/kernels/README.md`.

use std::path::PathBuf;

use smpcall_crashdump::kallsyms::Encoding;
use smpcall_crashdump::kernel::{Kernel, TaskError};
use smpcall_crashdump::percpu::CpuSet;
use smpcall_crashdump::stacks::Stack;
use smpcall_crashdump::unwind::{BackTrace, End, Start};
use smpcall_crashdump::{Dump, VirtualMemory as _};

fn dump(name: &str) -> Dump {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kernels").join(name);
    Dump::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lines(trace: &BackTrace) -> Vec<String> {
    assert!(trace.frames.iter().all(|frame| frame.certain), "{trace}");
    trace.frames.iter().map(|frame| frame.location.as_ref().expect("a name").to_string()).collect()
}

/// The back trace of the task with this number, of the first few that the kernel lists.
fn stack_of(kernel: &Kernel<'_>, pid: u32) -> Result<BackTrace, TaskError> {
    let types = kernel.types.as_ref().expect("types");
    let offset = |member| types.offset("task_struct", member).expect("every kernel has it");
    let mut task = kernel.address_of("init_task").expect("every kernel has it");
    for _ in 0..20 {
        if kernel.memory.read_u32(task + offset("pid")).expect("it was read before") == pid {
            break;
        }
        task = kernel.memory.read_u64(task + offset("tasks")).expect("it was read before") - offset("tasks");
    }
    kernel.unwind_task(task)
}

/// Linux 5.10: no keys for kallsyms, so the tables are searched for; ORC in its first layout; modules in one piece.
#[test]
fn linux_5_10() {
    let dump = dump("5.10.kdump");
    let kernel = Kernel::open(&dump).expect("a kernel");
    assert_eq!(kernel.release.as_str(), "5.10.0-32-cloud-amd64");
    let own = kernel.symbols.kallsyms().expect("its own symbols");
    assert_eq!(own.len(), 96_995);
    assert!(matches!(own.encoding(), Encoding::AbsolutePerCpu { .. }));
    for (name, address) in [
        ("_stext", 0xffff_ffff_9fc0_0000),
        ("smp_call_function_single", 0xffff_ffff_9fd3_00a0),
        ("schedule", 0xffff_ffff_a04b_1d10),
        ("__per_cpu_offset", 0xffff_ffff_a0d2_5920),
        ("init_task", 0xffff_ffff_a121_3940),
        ("prb", 0xffff_ffff_a125_97e0),
    ] {
        assert_eq!(kernel.address_of(name), Some(address), "{name}");
    }
    assert_eq!(kernel.address_of("call_single_queue"), Some(0x34340), "an offset");
    assert_eq!(kernel.cpus(CpuSet::Present), Ok(vec![0, 1, 2, 3]));
    let modules: Vec<_> = kernel.modules.iter().map(smpcall_crashdump::modules::Module::name).collect();
    assert_eq!(modules, ["dummy", "xfs", "loop", "qemu_fw_cfg", "libcrc32c"]);

    let trace = stack_of(&kernel, 2).expect("kthreadd sleeps");
    assert_eq!(lines(&trace)[2..], ["kthreadd+0x2d6/0x2f0", "ret_from_fork+0x22/0x30"]);
    assert_eq!(trace.end, End::Bottom);
    let trace = stack_of(&kernel, 15).expect("cpuhp/0 sleeps");
    let wanted = ["smpboot_thread_fn+0x10b/0x160", "kthread+0x11b/0x140", "ret_from_fork+0x22/0x30"];
    assert_eq!(lines(&trace)[2..], wanted);

    // CPU 0 was in user mode, CPU 2 in a system call, CPU 3 idle.
    let of_cpu = |cpu| kernel.unwind(Start::registers(&kernel.registers(cpu).expect("saved")));
    assert!(matches!(of_cpu(0), BackTrace { frames, end: End::UserMode(_) } if frames.is_empty()));
    let trace = of_cpu(2);
    assert!(trace.is_whole() && trace.has("do_exit") && matches!(trace.end, End::UserMode(_)), "{trace}");
    assert!(trace.frames.iter().all(|frame| frame.stack == Stack::Task));
    assert_eq!(
        lines(&of_cpu(3)).last().map(String::as_str),
        Some("secondary_startup_64_no_verify+0xb1/0xbb")
    );
    let log = kernel.log().expect("a log");
    assert_eq!((log.records.len(), log.unfinished), (494, 0));
    assert!(log.records[0].text.starts_with("Linux version 5.10.0-32-cloud-amd64 "));
}

/// Linux 7.2: place-relative addresses, per-CPU variables in the image, ORC with renumbered registers, types of modules.
#[test]
fn linux_7_2() {
    let dump = dump("7.2.kdump");
    let kernel = Kernel::open(&dump).expect("a kernel");
    assert_eq!(kernel.release.as_str(), "7.2.13+deb14-cloud-amd64");
    let own = kernel.symbols.kallsyms().expect("its own symbols");
    assert_eq!(own.len(), 186_798);
    assert!(matches!(own.encoding(), Encoding::PlaceRelative { .. }));
    for (name, address) in [
        ("_stext", 0xffff_ffff_a3e0_0000),
        ("smp_call_function_single", 0xffff_ffff_a42c_a900),
        ("schedule", 0xffff_ffff_a504_92c0),
        ("__per_cpu_offset", 0xffff_ffff_a589_60e0),
        ("init_task", 0xffff_ffff_a601_1140),
        ("prb", 0xffff_ffff_a608_1c20),
        ("call_single_queue", 0xffff_ffff_a6bd_8800),
    ] {
        assert_eq!(kernel.address_of(name), Some(address), "{name}");
    }
    assert_eq!(kernel.cpus(CpuSet::Online), Ok(vec![0, 1, 2, 3]));
    // The base of gs that the monitor showed of CPU 1.
    assert_eq!(kernel.per_cpu_layout().expect("known").cpu_of(0xffff_890c_28ad_b000), Some(1));
    for cpu in 0..4 {
        let trace = kernel.unwind(Start::registers(&kernel.registers(cpu).expect("saved")));
        assert!(trace.is_whole(), "CPU {cpu}: {trace}");
        assert_eq!(trace.has("do_idle"), cpu != 3, "CPU {cpu}: {trace}");
    }
    let trace = stack_of(&kernel, 2).expect("kthreadd sleeps");
    assert!(trace.is_whole() && trace.has("kthreadd") && trace.has("ret_from_fork_asm"), "{trace}");
    // CPU 0 idles: that is the first task of all.
    let idle = kernel.current_task(0).expect("there is one");
    assert_eq!(stack_of(&kernel, 0), Err(TaskError::Runs { task: idle }));
    let types = kernel.types_of_module("xfs").expect("it has a description");
    assert!(types.size_of("xfs_mount").is_some_and(|size| size > 1000));
    assert_eq!(
        kernel.types.as_ref().and_then(|types| types.size_of("xfs_mount")),
        None,
        "not the kernel's own"
    );
    assert_eq!(kernel.log().map(|log| log.records.len()), Ok(373));
}
