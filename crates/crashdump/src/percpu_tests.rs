use crate::kallsyms::{Encoding, Kallsyms};
use crate::kallsyms_samples::{Order, STEXT, build};
use crate::percpu::{CpuSet, PerCpu, PerCpuError, cpus_of};
use crate::symbols::{FileSymbols, Symbols};
use crate::virtual_memory::Extents;

const DATA: u64 = 0xffff_ffff_8300_0000;

/// Symbols of a kernel that has these in its data, and the data itself: offsets of 70 CPUs, and their sets.
fn kernel(section: u64) -> (Symbols, Extents) {
    let names = [
        (DATA, "__per_cpu_offset"),
        (DATA + 0x1000, "nr_cpu_ids"),
        (DATA + 0x1008, "__cpu_present_mask"),
        (DATA + 0x1018, "__cpu_online_mask"),
        (section, "__per_cpu_start"),
        (section + 0x32b00, "call_single_queue"),
    ];
    let symbols = names.map(|(address, name)| (address, 'd', name.into()));
    let mut data = vec![0; 0x1028];
    for cpu in 0..70_u64 {
        let offset = (0xffff_8880_0000_0000 + cpu * 0x10_0000).wrapping_sub(section);
        data[8 * cpu as usize..8 * cpu as usize + 8].copy_from_slice(&offset.to_le_bytes());
    }
    data[0x1000] = 70;
    // Present: 0, 1, 65. Online: 0.
    (data[0x1008], data[0x1010], data[0x1018]) = (0b11, 0b10, 1);
    (Symbols::new(None, Some(FileSymbols::new(symbols, 0))), Extents(vec![(DATA, data)]))
}

#[test]
fn variables_are_where_their_cpu_has_them_in_both_layouts() {
    // Counted from zero until Linux 6.14; since, in the image.
    for section in [0, 0xffff_ffff_8400_0000] {
        let (symbols, memory) = kernel(section);
        let per_cpu = PerCpu::load(&memory, &symbols).expect("it is all there");
        assert_eq!(per_cpu.count(), 70);
        let at = |cpu| per_cpu.address(&symbols, None, "call_single_queue", cpu);
        assert_eq!(at(0), Ok(0xffff_8880_0003_2b00));
        assert_eq!(at(69), Ok(0xffff_8880_0453_2b00));
        assert_eq!(at(70), Err(PerCpuError::NoCpu { cpu: 70, count: 70 }));
        let base = per_cpu.offset(3).expect("there is one");
        assert_eq!(per_cpu.cpu_of(base), Some(3));
        assert_eq!(per_cpu.cpu_of(base + 1), None);
        assert_eq!(
            per_cpu.address(&symbols, None, "nothing", 0),
            Err(PerCpuError::NoSymbol("nothing".into()))
        );
    }
}

#[test]
fn sets_of_cpus_have_as_many_words_as_it_takes() {
    let (symbols, memory) = kernel(0);
    let cpus = |set| cpus_of(&memory, &symbols, set);
    assert_eq!(cpus(CpuSet::Present), Ok(vec![0, 1, 65]));
    assert_eq!(cpus(CpuSet::Online), Ok(vec![0]));
    assert_eq!(cpus(CpuSet::Dying), Err(PerCpuError::NoSymbol("__cpu_dying_mask".into())));
}

#[test]
fn an_absurd_number_of_cpus_is_bounded() {
    let (symbols, mut memory) = kernel(0);
    memory.0[0].1[0x1000..0x1004].fill(0xff);
    assert!(matches!(PerCpu::load(&memory, &symbols), Err(PerCpuError::Missing { .. })));
}

#[test]
fn without_offsets_there_is_an_error_that_names_them() {
    let sample = build(Order::AddressesFirst, Encoding::AbsolutePerCpu { base: 0 });
    let kallsyms = Kallsyms::load(&sample.memory, &sample.tables, Some(STEXT)).expect("tables");
    let error = PerCpu::load(&sample.memory, &Symbols::from(kallsyms)).expect_err("there are none");
    assert_eq!(error, PerCpuError::NoSymbol("__per_cpu_offset".into()));
    assert!(error.to_string().contains("--vmlinux"), "{error}");
}
