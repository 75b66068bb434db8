//! The disk that a capture kernel writes to: the first virtio block device on the first PCI bus, polled.
//!
//! Source: OASIS, "Virtual I/O Device (VIRTIO) 1.2", "Block Device" and "Virtio Over PCI Bus". The driver is
//! `virtio-drivers`; here is what it needs from a kernel, and a bound for every request.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;
use core::time::Duration;

use smpcall_machine::{Deadline, Predicate, Woken, wait};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError, virtio_device_type};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::machine::{Calls, Lab};
use crate::pci::ConfigurationPorts;
use crate::{boot, memory};

/// How long one request may take: much longer than any disk that works.
const LIMIT: Duration = Duration::from_secs(20);
/// As much is written at a time.
const LARGEST: u64 = 1 << 20;

/// Writes begin and end at multiples of this.
pub(crate) const SECTOR: u64 = SECTOR_SIZE as u64;

/// What the driver needs from this kernel.
struct Dma;

// SAFETY: memory of `allocate_zeroed` is zero, aligned to its type's pages, and given away once. Registers are shown by the
// direct map, uncached, for ever. Physical addresses are what devices use: there is no IOMMU in use.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = memory::allocate(pages * PAGE_SIZE, PAGE_SIZE);
        (memory::physical_of(memory), NonNull::new(memory).unwrap_or(NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // This kernel's memory is only ever given away: it ends soon.
        0
    }

    unsafe fn mmio_phys_to_virt(physical: PhysAddr, size: usize) -> NonNull<u8> {
        memory::map_device(physical, physical.saturating_add(size as u64));
        NonNull::new(memory::direct(physical)).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        boot::physical_address(buffer.cast::<u8>().as_ptr())
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Why nothing can be written.
#[derive(Debug)]
pub(crate) enum DiskError {
    /// There is none.
    None,
    /// It cannot be set up over PCI.
    Transport(VirtioPciError),
    /// It cannot be set up.
    Device(virtio_drivers::Error),
    /// It has not written.
    Write {
        /// Where, in bytes.
        at: u64,
        /// What it says.
        error: virtio_drivers::Error,
    },
    /// It does not allow to be written.
    ReadOnly,
    /// It is too small: it would take so many bytes, and it has so many.
    TooSmall {
        /// How many bytes are to be written.
        needed: u64,
        /// How many it has.
        bytes: u64,
    },
    /// It has not answered in time.
    NoAnswer,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("there is no virtio disk: give the machine one"),
            Self::Transport(error) => write!(f, "the disk cannot be used over PCI: {error}"),
            Self::Device(error) => write!(f, "the disk cannot be set up: {error}"),
            Self::Write { at, error } => write!(f, "the disk fails at byte {at}: {error}"),
            Self::ReadOnly => f.write_str("the disk cannot be written: it is read-only"),
            Self::TooSmall { needed, bytes } => {
                write!(f, "the disk is too small: {needed} bytes are to be written, and it has {bytes}")
            }
            Self::NoAnswer => write!(f, "the disk has not answered for {LIMIT:?}"),
        }
    }
}

/// A disk.
pub(crate) struct Disk {
    device: VirtIOBlk<Dma, PciTransport>,
    /// What the device reads and writes while a request is under way: on the stack of nobody who may leave.
    request: &'static mut BlkReq,
    response: &'static mut BlkResp,
}

/// Both are given to the device by their addresses.
struct Shared(UnsafeCell<(BlkReq, BlkResp)>);

impl Disk {
    /// Finds it and sets it up.
    ///
    /// # Safety
    /// Nobody else uses PCI, now and as long as the disk is used; on the boot CPU, which may allocate.
    pub(crate) unsafe fn find() -> Result<Self, DiskError> {
        // SAFETY: promised by the caller.
        let mut root = PciRoot::new(unsafe { ConfigurationPorts::new() });
        let is_disk =
            |info: &_| virtio_device_type(info).is_some_and(|kind| matches!(kind, DeviceType::Block));
        let (function, _) = root.enumerate_bus(0).find(|(_, info)| is_disk(info)).ok_or(DiskError::None)?;
        let (_, command) = root.get_status_command(function);
        root.set_command(function, command | Command::MEMORY_SPACE | Command::BUS_MASTER);
        let transport = PciTransport::new::<Dma, _>(&mut root, function).map_err(DiskError::Transport)?;
        let mut device = VirtIOBlk::new(transport).map_err(DiskError::Device)?;
        if device.readonly() {
            return Err(DiskError::ReadOnly);
        }
        device.disable_interrupts();
        // SAFETY: zero is a value of both: a request to read, and one that went well. The memory is nobody else's.
        let (request, response) = unsafe {
            let both = &mut *memory::allocate_zeroed::<Shared>(1)[0].0.get();
            (&mut both.0, &mut both.1)
        };
        Ok(Self { device, request, response })
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.device.capacity().saturating_mul(SECTOR)
    }

    /// Writes physical memory, which this CPU need not see. Everything is a multiple of [`SECTOR`]. `told` is called after each
    /// step with the bytes of it.
    ///
    /// # Safety
    /// The direct map has the range, and no reference to it that anybody writes through is used meanwhile.
    pub(crate) unsafe fn write(
        &mut self,
        offset: u64,
        physical: u64,
        bytes: u64,
        told: &mut dyn FnMut(u64),
    ) -> Result<(), DiskError> {
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(LARGEST);
            // SAFETY: promised by the caller. The driver takes its address and looks at nothing in it.
            let data =
                unsafe { core::slice::from_raw_parts(memory::direct::<u8>(physical + done), step as usize) };
            self.write_step((offset + done) / SECTOR, data)?;
            done += step;
            Calls::progress();
            told(step);
        }
        Ok(())
    }

    fn write_step(&mut self, sector: u64, data: &[u8]) -> Result<(), DiskError> {
        let Self { device, request, response } = self;
        // SAFETY: the request and the response are memory for ever and used by nothing but this; the data is memory for ever.
        let token = unsafe { device.write_blocks_nb(sector as usize, request, data, response) };
        let failed = |error| DiskError::Write { at: sector * SECTOR, error };
        let token = token.map_err(failed)?;
        let looked_at = UnsafeCell::new(&mut *device);
        // SAFETY: looked at by this CPU alone, one look after the other.
        let answered = Predicate(|| unsafe { (**looked_at.get()).peek_used() }.is_some());
        if wait::<Lab>(&answered, Deadline::within::<Lab>(LIMIT)) == Woken::Deadline {
            return Err(DiskError::NoAnswer);
        }
        // SAFETY: they are the same as above.
        unsafe { device.complete_write_blocks(token, request, data, response) }.map_err(failed)
    }

    /// Returns when all that was written is where it stays.
    pub(crate) fn flush(&mut self) -> Result<(), DiskError> {
        self.device.flush().map_err(|error| DiskError::Write { at: self.bytes(), error })
    }
}
