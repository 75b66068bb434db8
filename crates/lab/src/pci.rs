//! PCI's configuration space, by the two ports that every PC has. Source: PCI Local Bus Specification 3.0, "Configuration
//! Mechanism". The 256 bytes of it that they reach hold all that a virtio device has to say.

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use x86_64::instructions::port::Port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLED: u32 = 1 << 31;

/// The two ports. One CPU uses them, and none of its interrupt handlers does.
pub(crate) struct ConfigurationPorts(());

impl ConfigurationPorts {
    /// The ports.
    ///
    /// # Safety
    /// Nobody else uses them while this lives.
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }

    fn select(function: DeviceFunction, register: u8) -> Port<u32> {
        let DeviceFunction { bus, device, function } = function;
        let place = u32::from(bus) << 16 | u32::from(device & 31) << 11 | u32::from(function & 7) << 8;
        // SAFETY: the port only chooses what the other one shows, and it is ours: see `new`.
        unsafe { Port::<u32>::new(ADDRESS).write(ENABLED | place | u32::from(register & 0xfc)) };
        Port::new(DATA)
    }
}

impl ConfigurationAccess for ConfigurationPorts {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        // SAFETY: what is read without being asked for has no effect in configuration space: see the specification.
        unsafe { Self::select(function, register).read() }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        // SAFETY: the caller is the driver of the device, or sets up what nobody uses yet.
        unsafe { Self::select(function, register).write(data) }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        // SAFETY: the two are used one after the other, by the one CPU.
        unsafe { Self::new() }
    }
}
