//! From the loader to Rust: the PVH entry of the boot CPU, the start-up page of all others.
//!
//! Sources: Xen, "x86/HVM direct boot ABI" (the PVH note, the state at its entry, `hvm_start_info`); SDM, "Initializing IA-32e
//! Mode" and "Multiple-Processor (MP) Initialization".
//!
//! Both paths end at the same page tables:
//!
//! | virtual | physical | for |
//! |---|---|---|
//! | 0.. | 0..4 GiB | the way here, and a start-up page |
//! | [`DIRECT_MAP`].. | 0.., as far as there is memory | everything that is known by its physical address |
//! | [`IMAGE_BASE`].. | 0..1 GiB (in a capture kernel: its own range) | the image |

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where physical memory is seen.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Where the image is linked, less its physical address.
pub(crate) const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
/// The physical page where other CPUs start, in real mode.
pub(crate) const START_UP_PAGE: u8 = 8;

/// A page table, or what else fills a page.
#[repr(C, align(4096))]
pub(crate) struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: written by the boot CPU only, before there are others, and by `memory` with the same restriction.
unsafe impl Sync for Page {}

impl Page {
    const ZERO: Self = Self(UnsafeCell::new([0; 512]));

    /// Its entries.
    pub(crate) const fn entries(&self) -> *mut u64 {
        self.0.get().cast()
    }
}

/// The root of the page tables.
#[unsafe(no_mangle)]
pub(crate) static BOOT_PML4: Page = Page::ZERO;
/// The lowest 512 GiB, by 1 GiB: of the identity and the direct map.
#[unsafe(no_mangle)]
pub(crate) static BOOT_PDPT: Page = Page::ZERO;
/// The highest 512 GiB, by 1 GiB.
#[unsafe(no_mangle)]
static BOOT_PDPT_IMAGE: Page = Page::ZERO;
/// 4 GiB by 2 MiB.
#[unsafe(no_mangle)]
static BOOT_PDS: [Page; 4] = [Page::ZERO; 4];

/// Stack of the boot CPU until it has one like the others.
#[repr(C, align(4096))]
struct BootStack(UnsafeCell<[u8; 65536]>);

// SAFETY: used as a stack by the boot CPU only.
unsafe impl Sync for BootStack {}

#[unsafe(no_mangle)]
static BOOT_STACK: BootStack = BootStack(UnsafeCell::new([0; 65536]));

unsafe extern "C" {
    static start_up_code: u8;
    static start_up_code_end: u8;
    static start_up_page_table: u8;
}

// Entered in 32-bit protected mode without paging, `ebx` = physical address of `hvm_start_info`.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_entry - {base}

    .section .boot.text, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    mov $(BOOT_PDS - {base}), %edi
    xor %ecx, %ecx
    mov $0x83, %eax                 // present, writable, 2 MiB
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $8, %edi
    add $0x200000, %eax
    inc %ecx
    cmp $1536, %ecx
    jne 2f
    or $0x18, %eax                  // the fourth GiB is devices: uncached
2:  cmp $2048, %ecx
    jne 1b
    mov $(BOOT_PDPT - {base}), %edi
    mov $(BOOT_PDS - {base} + 3), %eax
    mov %eax, (%edi)
    add $4096, %eax
    mov %eax, 8(%edi)
    add $4096, %eax
    mov %eax, 16(%edi)
    add $4096, %eax
    mov %eax, 24(%edi)
    movl $(BOOT_PDS - {base} + 3), (BOOT_PDPT_IMAGE - {base} + 510 * 8)
    mov $(BOOT_PML4 - {base}), %edi
    movl $(BOOT_PDPT - {base} + 3), (%edi)
    movl $(BOOT_PDPT - {base} + 3), 273 * 8(%edi)
    movl $(BOOT_PDPT_IMAGE - {base} + 3), 511 * 8(%edi)
    mov %edi, %cr3
    mov %cr4, %eax
    or $0x20, %eax                  // PAE
    mov %eax, %cr4
    mov $0xc0000080, %ecx           // EFER
    rdmsr
    or $0x100, %eax                 // long mode
    wrmsr
    mov %cr0, %eax
    or $0x80010001, %eax            // paging, write protection, protection
    mov %eax, %cr0
    lgdt (boot_gdt_pointer - {base})
    ljmp $8, $(boot_long_mode - {base})

    .code64
boot_long_mode:
    movabs $boot_high, %rax
    jmp *%rax
boot_high:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    lea BOOT_STACK + 65536(%rip), %rsp
    mov %ebx, %edi
    xor %ebp, %ebp
    call boot_cpu_entry
    ud2

    .balign 8
boot_gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
boot_gdt_pointer:
    .word 23
    .long boot_gdt - {base}

    // Copied to the start-up page, where it is entered in real mode.
    .code16
    .global start_up_code, start_up_code_end, start_up_page_table
    .balign 16
start_up_code:
    cli
    cld
    xor %ax, %ax
    mov %ax, %ds
    lgdtl {page} + (start_up_gdt_pointer - start_up_code)
    mov {page} + (start_up_page_table - start_up_code), %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    // The cache bits that INIT leaves set are cleared.
    mov $0x80010011, %eax
    mov %eax, %cr0
    ljmpl $8, ${page} + (start_up_long_mode - start_up_code)
    .code64
start_up_long_mode:
    movabs $start_up_high, %rax
    jmp *%rax
    .balign 8
start_up_gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
start_up_gdt_pointer:
    .word 23
    .long {page} + (start_up_gdt - start_up_code)
    .balign 4
start_up_page_table:
    .long 0
start_up_code_end:

    // Which CPU is this? By the identifier of its APIC: a CPU that comes late must not take another one's stack.
start_up_high:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    cpuid
    cmp $0xb, %eax
    jb 1f
    mov $0xb, %eax
    xor %ecx, %ecx
    cpuid
    mov %edx, %eax
    test %ebx, %ebx
    jnz 2f
1:  mov $1, %eax
    cpuid
    shr $24, %ebx
    mov %ebx, %eax
2:  lea APIC_IDS(%rip), %rcx
    mov CPU_COUNT(%rip), %edx
    xor %edi, %edi
3:  cmp %edx, %edi
    jae 5f
    cmp %eax, (%rcx, %rdi, 4)
    je 4f
    inc %edi
    jmp 3b
4:  lea STACK_TOPS(%rip), %rcx
    mov (%rcx, %rdi, 8), %rsp
    test %rsp, %rsp
    jz 5f
    xor %ebp, %ebp
    call other_cpu_entry
    ud2
5:  cli
    hlt
    jmp 5b
    "#,
    base = const IMAGE_BASE,
    page = const (START_UP_PAGE as u32) << 12,
    options(att_syntax)
);

/// Puts the start-up code where other CPUs begin, with the page tables that this CPU has.
///
/// # Safety
/// The start-up page is memory that nobody else uses. The page tables are below 4 GiB.
pub(crate) unsafe fn prepare_start_up_page(page_table: u64) {
    let (from, end) = (&raw const start_up_code, &raw const start_up_code_end);
    let to = (DIRECT_MAP + (u64::from(START_UP_PAGE) << 12)) as *mut u8;
    let table_at = (&raw const start_up_page_table).addr() - from.addr();
    // SAFETY: the code is shorter than a page, and the page is this function's, says the caller.
    unsafe {
        core::ptr::copy_nonoverlapping(from, to, end.addr() - from.addr());
        to.add(table_at).cast::<u32>().write_unaligned(page_table as u32);
    }
}

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static image_start: u8;
    static notes_start: u8;
    static notes_end: u8;
    static image_end: u8;
}

/// Whether an address is in the code of the image.
pub(crate) fn is_code(address: u64) -> bool {
    ((&raw const text_start).addr() as u64..(&raw const text_end).addr() as u64).contains(&address)
}

/// How much higher in physical memory the image is than it is linked: 0, but in a capture kernel.
static OFFSET: AtomicU64 = AtomicU64::new(0);

/// Says so. By a capture kernel, before it asks for anything of the image.
pub(crate) fn set_image_offset(offset: u64) {
    // Relaxed, here and below: there is one CPU when it is written.
    OFFSET.store(offset, Relaxed);
}

/// Where the image is linked to, as a range of physical memory.
pub(crate) fn linked_range() -> Range<u64> {
    (&raw const image_start).addr() as u64 - IMAGE_BASE..(&raw const image_end).addr() as u64 - IMAGE_BASE
}

/// The physical range of the image.
pub(crate) fn image_range() -> Range<u64> {
    let (linked, offset) = (linked_range(), OFFSET.load(Relaxed));
    linked.start + offset..linked.end + offset
}

/// The physical address of memory that the image or the direct map shows.
pub(crate) fn physical_address<T>(pointer: *const T) -> u64 {
    let address = pointer.addr() as u64;
    match address.checked_sub(IMAGE_BASE) {
        Some(linked) => linked + OFFSET.load(Relaxed),
        None => address - DIRECT_MAP,
    }
}

/// Writes the page tables of a copy of this image that is `offset` bytes higher in physical memory: the same view of physical
/// memory, and the copy where this image is. `directory` is the physical address of a page for that. Returns the physical
/// address of their root.
///
/// # Safety
/// The copy and the page are memory that nobody uses, below 4 GiB; `offset` is a multiple of 2 MiB.
pub(crate) unsafe fn write_tables_of_copy(offset: u64, directory: u64) -> u64 {
    const TABLE: u64 = 3;
    const LARGE_PAGE: u64 = 0x83;
    let copied = |page: &Page| page.entries().addr() as u64 - IMAGE_BASE + offset;
    let table = |physical: u64| (DIRECT_MAP + physical) as *mut u64;
    let root = copied(&BOOT_PML4);
    // SAFETY: all of these are pages of the copy, which are the caller's.
    unsafe {
        for at in [0, 273] {
            table(root).add(at).write(copied(&BOOT_PDPT) + TABLE);
        }
        table(root).add(511).write(copied(&BOOT_PDPT_IMAGE) + TABLE);
        table(copied(&BOOT_PDPT_IMAGE)).add(510).write(directory + TABLE);
        for (gib, page) in BOOT_PDS.iter().enumerate() {
            table(copied(&BOOT_PDPT)).add(gib).write(copied(page) + TABLE);
            table(copied(page)).copy_from_nonoverlapping(page.entries(), 512);
        }
        for at in (linked_range().start >> 21)..linked_range().end.div_ceil(2 << 20) {
            table(directory).add(at as usize).write((at << 21) + offset + LARGE_PAGE);
        }
    }
    root
}

/// The notes of the image, its build identifier among them.
pub(crate) fn notes() -> &'static [u8] {
    let (start, end) = (&raw const notes_start, &raw const notes_end);
    // SAFETY: both ends of a part of the image that nobody writes.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
