//! A kernel, as its memory tells of it: symbols, types, modules, per-CPU variables, stacks.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use smpcall_vmcore::{Note, Notes, PrStatus, Registers, prstatus};

use crate::btf::Btf;
use crate::kallsyms::{Kallsyms, KallsymsError, Tables};
use crate::kallsyms_scan;
use crate::location::Location;
use crate::modules::{MOST_MODULES, Modules};
use crate::orc::{self, Layout, OrcEntry, OrcTable};
use crate::percpu::{self, CpuSet, PerCpu, PerCpuError};
use crate::printk::{self, Log, LogError};
use crate::release::KernelRelease;
use crate::stacks::Stacks;
use crate::symbols::Symbols;
use crate::types::{Types, TypesError};
use crate::unwind::{BackTrace, Code, Start, Unwinder};
use crate::virtual_memory::number;
use crate::{Dump, KernelMemory, OpenError, ReadError, SavedCpu, VirtualMemory};

/// Where kernels of x86-64 are: the last 2 GiB. The image is in the first of them, modules in the second.
const IMAGE: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
/// The image begins at a multiple of this.
const IMAGE_ALIGNMENT: usize = 2 << 20;
/// No kernel's image is larger.
const LARGEST_IMAGE: u64 = 256 << 20;

/// Why a kernel cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not even its memory.
    #[error(transparent)]
    Memory(#[from] OpenError),
    /// Not its symbols.
    #[error(transparent)]
    Symbols(#[from] KallsymsError),
    /// Not its file.
    #[cfg(feature = "dwarf")]
    #[error(transparent)]
    Vmlinux(#[from] crate::vmlinux::VmlinuxError),
}

/// Why there is no back trace of a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It runs: its registers are those of its CPU, and what it left when it last slept means nothing.
    #[error("the task at {task:#x} runs: where it is, only the registers of its CPU say")]
    Runs {
        /// The address of its `task_struct`.
        task: u64,
    },
    /// How a task is laid out is not known.
    #[error("where a task keeps its stack pointer (task_struct.thread.sp) is not known; --vmlinux would say")]
    NoLayout,
    /// It cannot be read.
    #[error("where the task at {task:#x} stands cannot be read: {source}")]
    Missing {
        /// The address of its `task_struct`.
        task: u64,
        /// Why.
        source: ReadError,
    },
}

/// A kernel.
#[derive(Debug)]
pub struct Kernel<'d> {
    /// Its virtual memory.
    pub memory: KernelMemory<'d>,
    /// The symbols of its image. Those of modules too are asked for by [`address_of`](Self::address_of) and
    /// [`locate`](Self::locate).
    pub symbols: Symbols,
    /// Its types, if it carries their description or its file does.
    pub types: Option<Types>,
    /// Its release.
    pub release: KernelRelease,
    /// Its modules.
    pub modules: Modules,
    btf: Option<Arc<Btf>>,
    per_cpu: Result<PerCpu, PerCpuError>,
    orc: Option<OrcTable>,
    layout: Layout,
    stacks: OnceLock<Stacks>,
    text: Vec<Range<u64>>,
    remarks: Vec<String>,
}

impl<'d> Kernel<'d> {
    /// Reads what everything else is found with. Nothing but symbols is indispensable: what else is missing is said by
    /// [`remarks`](Self::remarks).
    ///
    /// # Errors
    ///
    /// The kernel's memory cannot be translated, or it has no symbols.
    pub fn open(dump: &'d Dump) -> Result<Self, KernelError> {
        let memory = KernelMemory::new(dump)?;
        let symbols = Symbols::from(find_kallsyms(&memory)?);
        Ok(Self::with(memory, symbols, None, Vec::new()))
    }

    /// As [`open`](Self::open), with the file that the kernel was built as for what it does not carry itself.
    ///
    /// # Errors
    ///
    /// The kernel's memory cannot be translated; or the file is of another kernel.
    #[cfg(feature = "dwarf")]
    pub fn open_with_vmlinux(dump: &'d Dump, vmlinux: crate::vmlinux::Vmlinux) -> Result<Self, KernelError> {
        let memory = KernelMemory::new(dump)?;
        let info = memory.vmcoreinfo();
        if let Some(id) = info.get("BUILD-ID") {
            vmlinux.check_build_id(id)?;
        }
        let mut remarks = Vec::new();
        let kallsyms = find_kallsyms(&memory).map_err(|error| remarks.push(error.to_string())).ok();
        let runs_at = info
            .symbol("_stext")
            .or_else(|| kallsyms.as_ref().and_then(|kallsyms| kallsyms.address_of("_stext")));
        let slide = match (runs_at, vmlinux.linked_address("_stext")) {
            (Some(runs_at), Some(linked_at)) => runs_at.wrapping_sub(linked_at),
            _ => 0,
        };
        let (file, types) = vmlinux.into_parts(slide);
        Ok(Self::with(memory, Symbols::new(kallsyms, Some(file)), Some(types), remarks))
    }

    /// `other_types` are used if the kernel carries none.
    fn with(
        memory: KernelMemory<'d>,
        symbols: Symbols,
        other_types: Option<Types>,
        mut remarks: Vec<String>,
    ) -> Self {
        let btf = match load_btf(&memory, &symbols) {
            Ok(btf) => Some(Arc::new(btf)),
            Err(error) => {
                if other_types.is_none() {
                    remarks.push(error.to_string());
                }
                None
            }
        };
        let types = btf.as_ref().map(|btf| Types::from(Arc::clone(btf))).or(other_types);
        let release = memory.vmcoreinfo().release().map_or_else(|| banner(&memory, &symbols), str::to_owned);
        let release = KernelRelease::new(&release);
        let modules = Modules::load(&memory, &symbols, types.as_ref());
        remarks.extend(modules.problem().map(ToString::to_string));
        let per_cpu = PerCpu::load(&memory, &symbols);
        remarks.extend(per_cpu.as_ref().err().map(ToString::to_string));
        let orc = OrcTable::of_image(&symbols);
        let layout = orc::layout(&memory, &symbols, &release);
        let text = text(&symbols);
        let stacks = OnceLock::new();
        Self { memory, symbols, types, release, modules, btf, per_cpu, orc, layout, stacks, text, remarks }
    }

    /// What is missing, one sentence each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The address of a symbol: of the kernel's image, or else of a module.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let of_module = || self.modules.iter().find_map(|module| module.address_of(&self.memory, name));
        self.symbols.address_of(name).or_else(of_module)
    }

    /// What is at an address, in the image or in a module.
    pub fn locate(&self, address: u64) -> Option<Location> {
        if let Some(module) = self.modules.at(address) {
            return module.at(&self.memory, address);
        }
        let symbol = self.symbols.at(address)?;
        let offset = address - symbol.address;
        Some(Location { name: symbol.name, offset, size: symbol.size, module: None })
    }

    /// How per-CPU variables are laid out.
    ///
    /// # Errors
    ///
    /// What was missing when the kernel was opened.
    pub fn per_cpu_layout(&self) -> Result<&PerCpu, PerCpuError> {
        self.per_cpu.as_ref().map_err(Clone::clone)
    }

    /// The address of a CPU's variable.
    ///
    /// # Errors
    ///
    /// There is no such variable or CPU.
    pub fn per_cpu(&self, variable: &str, cpu: u32) -> Result<u64, PerCpuError> {
        self.per_cpu_layout()?.address(&self.symbols, self.types.as_ref(), variable, cpu)
    }

    /// The CPUs of a set, in order.
    ///
    /// # Errors
    ///
    /// The kernel has no such set, or it cannot be read.
    pub fn cpus(&self, set: CpuSet) -> Result<Vec<u32>, PerCpuError> {
        percpu::cpus_of(&self.memory, &self.symbols, set)
    }

    /// The address of the `task_struct` that a CPU runs.
    ///
    /// # Errors
    ///
    /// No such CPU, or what says so cannot be read.
    pub fn current_task(&self, cpu: u32) -> Result<u64, PerCpuError> {
        // `pcpu_hot` held what is most used, from Linux 6.2 to 6.14.
        let hot = self.types.as_ref().and_then(|types| types.offset("pcpu_hot", "current_task"));
        let at = match hot.map(|member| Ok(self.per_cpu("pcpu_hot", cpu)?.wrapping_add(member))) {
            Some(at) => at?,
            None => self.per_cpu("current_task", cpu)?,
        };
        let missing =
            |source| PerCpuError::Missing { what: format!("the current task of CPU {cpu}"), source };
        self.memory.read_u64(at).map_err(missing)
    }

    /// The registers that were saved of a CPU, by a machine's monitor or by the kernel when it crashed. None of a CPU that
    /// saved nothing: it did not answer, or was never started.
    pub fn registers(&self, cpu: u32) -> Option<Registers> {
        let saved = self.memory.dump().cpus();
        let by_base = saved.iter().find(|saved| self.cpu_of(saved) == Some(cpu));
        if let Some(saved) = by_base {
            return Some(saved.registers);
        }
        self.crash_note(cpu).or_else(|| {
            // An old monitor's note of a CPU in user mode has no base of the kernel's. Notes are in the order of CPUs, unless
            // another note says that it is this CPU's, or this note that it is another's.
            let saved = saved.get(cpu as usize)?;
            let in_user_mode = saved.registers.cs & 3 == 3 && saved.control.is_some();
            (in_user_mode && self.cpu_of(saved).is_none()).then_some(saved.registers)
        })
    }

    /// The CPU of which a monitor saved this: by the base of its per-CPU variables, which in user mode is in the other
    /// register.
    fn cpu_of(&self, saved: &SavedCpu) -> Option<u32> {
        let (control, per_cpu) = (saved.control?, self.per_cpu.as_ref().ok()?);
        per_cpu.cpu_of(control.gs_base).or_else(|| per_cpu.cpu_of(control.kernel_gs_base?))
    }

    /// The registers in a CPU's own note, which the crashing kernel wrote.
    fn crash_note(&self, cpu: u32) -> Option<Registers> {
        const BYTES: usize = smpcall_vmcore::note_bytes(prstatus::CORE, PrStatus::BYTES);
        let notes = self.memory.read_u64(self.symbols.address_of("crash_notes")?).ok()?;
        let at = notes.wrapping_add(self.per_cpu.as_ref().ok()?.offset(cpu).ok()?);
        let bytes = self.memory.read_bytes(at, BYTES).ok()?;
        // All zero if nothing was saved: then there is no note.
        let note = Notes::new(&bytes).next()?.ok()?;
        let Note { owner, kind, descriptor } = note;
        if owner != prstatus::CORE.as_bytes() || kind != prstatus::NT_PRSTATUS {
            return None;
        }
        PrStatus::from_bytes(descriptor).map(|status| status.registers)
    }

    /// The kernel's log: what `dmesg` would have printed.
    ///
    /// # Errors
    ///
    /// It is not known where it is or how it is laid out, or it cannot be read.
    pub fn log(&self) -> Result<Log, LogError> {
        let (symbols, types) = (&self.symbols, self.types.as_ref());
        printk::read(&self.memory, &printk::Layout { info: self.memory.vmcoreinfo(), symbols, types })
    }

    fn stacks(&self) -> &Stacks {
        self.stacks.get_or_init(|| {
            let Ok(per_cpu) = &self.per_cpu else { return Stacks::default() };
            let cpus = self.cpus(CpuSet::Possible).unwrap_or_default();
            Stacks::load(&self.memory, &self.symbols, self.types.as_ref(), per_cpu, &cpus)
        })
    }

    /// The back trace from there.
    pub fn unwind(&self, start: Start) -> BackTrace {
        Unwinder::new(&self.memory, self, self.stacks()).unwind(start)
    }

    /// The back trace of a task that does not run, by the address of its `task_struct`.
    ///
    /// # Errors
    ///
    /// It does run; how a task is laid out is not known; or where it stands cannot be read.
    pub fn unwind_task(&self, task: u64) -> Result<BackTrace, TaskError> {
        let types = self.types.as_ref().ok_or(TaskError::NoLayout)?;
        let missing = |source| TaskError::Missing { task, source };
        // 32 bits, and 8 in later kernels.
        if let Some(on_cpu) = types.field("task_struct", "on_cpu") {
            let at = task.wrapping_add(on_cpu.offset);
            if self.memory.read_number(at, on_cpu.size as usize).map_err(missing)? != 0 {
                return Err(TaskError::Runs { task });
            }
        }
        let member = types.offset("task_struct", "thread.sp").ok_or(TaskError::NoLayout)?;
        let sp = self.memory.read_u64(task.wrapping_add(member)).map_err(missing)?;
        // What switching tasks pushes: r15, r14, r13, r12, rbx, rbp and the return address, since Linux 4.9.
        let offset = |name, otherwise| types.offset("inactive_task_frame", name).unwrap_or(otherwise);
        let size = types.size_of("inactive_task_frame").filter(|&size| size <= 256).unwrap_or(56);
        let frame = self.memory.read_bytes(sp, size as usize).map_err(missing)?;
        let word = |at: u64| number(&frame, at as usize, 8).unwrap_or(0);
        let (bp, ip) = (word(offset("bp", 40)), word(offset("ret_addr", 48)));
        Ok(self.unwind(Start::sleeping(sp.wrapping_add(size), bp, ip)))
    }

    /// The types of a module, together with the kernel's. Since Linux 5.11, if the module was built with them.
    ///
    /// # Errors
    ///
    /// There is no such module, the kernel has no description of its types, or that cannot be read.
    pub fn types_of_module(&self, name: &str) -> Result<Types, TypesError> {
        let module = self.modules.named(name).ok_or(TypesError::Absent)?;
        let (Some(base), Some(types)) = (&self.btf, &self.types) else { return Err(TypesError::Absent) };
        let at = self.btf_of(module.address(), types).ok_or(TypesError::Absent)?;
        Ok(Types::from(Arc::new(read_btf(&self.memory, at, Some(Arc::clone(base)))?)))
    }

    /// Where the kernel keeps the BTF of a module: in a list of its own, since `struct module` forgets it.
    fn btf_of(&self, module: u64, types: &Types) -> Option<Range<u64>> {
        let word = |at: u64| self.memory.read_u64(at).ok();
        let head = self.symbols.address_of("btf_modules")?;
        let offset = |member| types.offset("btf_module", member);
        let (list, of, btf) = (offset("list")?, offset("module")?, offset("btf")?);
        let mut node = word(head)?;
        for _ in 0..MOST_MODULES {
            if node == head {
                break;
            }
            let entry = node.wrapping_sub(list);
            if word(entry.wrapping_add(of))? != module {
                node = word(node)?;
                continue;
            }
            let btf = word(entry.wrapping_add(btf))?;
            let member = |name| Some(btf.wrapping_add(types.offset("btf", name)?));
            let begin = word(member("data")?)?;
            let size = self.memory.read_u32(member("data_size")?).ok()?;
            return Some(begin..begin.checked_add(size.into())?);
        }
        None
    }
}

impl Code for Kernel<'_> {
    fn entry(&self, address: u64) -> Result<Option<OrcEntry>, ReadError> {
        let table = match self.modules.at(address) {
            Some(module) => module.orc(),
            None => self.orc.filter(|_| self.text.iter().any(|text| text.contains(&address))),
        };
        let Some(table) = table else { return Ok(None) };
        Ok(table.find(&self.memory, address)?.map(|bytes| self.layout.decode(bytes)))
    }

    fn locate(&self, address: u64) -> Option<Location> {
        Self::locate(self, address)
    }

    fn is_code(&self, address: u64) -> bool {
        self.text.iter().any(|text| text.contains(&address))
            || self
                .modules
                .at(address)
                .and_then(|module| module.parts().first())
                .is_some_and(|text| text.contains(&address))
    }

    fn offset_before_indirection(&self) -> bool {
        !self.release.at_least(5, 12)
    }

    fn has_frame_pointers(&self) -> bool {
        self.orc.is_none()
    }
}

/// The first address of the image: where the first mapped page is at which one can begin.
fn image_begin(memory: &KernelMemory<'_>) -> Option<u64> {
    IMAGE.step_by(IMAGE_ALIGNMENT).find(|&address| memory.translate(address).is_ok())
}

/// The kernel's own symbols: where VMCOREINFO says, or else where they are found in its image.
fn find_kallsyms(memory: &KernelMemory<'_>) -> Result<Kallsyms, KallsymsError> {
    let info = memory.vmcoreinfo();
    let stext = info.symbol("_stext");
    if let Some(tables) = Tables::from_vmcoreinfo(memory, info)? {
        return Kallsyms::load(memory, &tables, stext);
    }
    let searched = Unnoted(memory);
    let begin = stext.or_else(|| image_begin(memory)).unwrap_or(IMAGE.start);
    let end = begin.saturating_add(LARGEST_IMAGE).min(IMAGE.end);
    kallsyms_scan::find(memory, &searched, begin..end, stext)
}

/// Memory past what is kept and noted of it.
struct Unnoted<'k, 'd>(&'k KernelMemory<'d>);

impl VirtualMemory for Unnoted<'_, '_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.0.read_again(address, into)
    }
}

/// Where the image has code.
fn text(symbols: &Symbols) -> Vec<Range<u64>> {
    [("_stext", "_etext"), ("_sinittext", "_einittext")]
        .into_iter()
        .filter_map(|(begin, end)| Some(symbols.address_of(begin)?..symbols.address_of(end)?))
        .collect()
}

fn load_btf(memory: &dyn VirtualMemory, symbols: &Symbols) -> Result<Btf, TypesError> {
    let (Some(begin), Some(end)) = (symbols.address_of("__start_BTF"), symbols.address_of("__stop_BTF"))
    else {
        return Err(TypesError::Absent);
    };
    if begin >= end {
        return Err(TypesError::Absent);
    }
    read_btf(memory, begin..end, None)
}

fn read_btf(memory: &dyn VirtualMemory, at: Range<u64>, base: Option<Arc<Btf>>) -> Result<Btf, TypesError> {
    let length = usize::try_from(at.end - at.start).unwrap_or(usize::MAX);
    let bytes = memory
        .read_bytes(at.start, length)
        .map_err(|source| TypesError::Missing { address: at.start, source })?;
    Btf::new(&bytes, base)
}

/// The release in the kernel's banner, `Linux version 6.1.0 (...`.
fn banner(memory: &dyn VirtualMemory, symbols: &Symbols) -> String {
    let text = symbols.address_of("linux_banner").and_then(|at| memory.read_string(at, 256).ok());
    text.unwrap_or_default().split(' ').nth(2).unwrap_or_default().to_owned()
}
