//! Which GPU is meant: by UUID in Kubernetes and NVML, by the place on the PCI bus in the kernel's log.

use std::fmt;
use std::str::FromStr;

/// What stays the same while a GPU is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `GPU-…`; empty for a GPU that was lost before it was seen.
    pub uuid: String,
    /// NVML's number, which may be another after a reboot.
    pub index: u32,
    pub model: String,
    pub pci: Option<PciAddress>,
    /// The number of `/dev/nvidia…`.
    pub minor: Option<u32>,
}

/// The place on the PCI bus. The function is left out: a GPU is one function, and the kernel's log does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u8,
    pub device: u8,
}

/// A text that is no place on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PCI address as in 0000:3b:00")]
pub struct InvalidPciAddress;

impl FromStr for PciAddress {
    type Err = InvalidPciAddress;

    /// Reads `0000:3b:00`, with a function (`.0`) or without, and with NVML's eight digits of the domain.
    fn from_str(text: &str) -> Result<Self, InvalidPciAddress> {
        let hex = |digits: &str| {
            let sound = (1..=8).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| sound).ok_or(InvalidPciAddress)
        };
        let byte = |digits: &str| hex(digits).and_then(|number| u8::try_from(number).map_err(|_| InvalidPciAddress));
        let place = text.split_once('.').map_or(text, |(place, _function)| place);
        let mut parts = place.split(':');
        let mut part = || parts.next().ok_or(InvalidPciAddress);
        let address = Self { domain: hex(part()?)?, bus: byte(part()?)?, device: byte(part()?)? };
        if parts.next().is_some() { Err(InvalidPciAddress) } else { Ok(address) }
    }
}

impl fmt::Display for PciAddress {
    /// As NVML and dcgm-exporter write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernel_and_nvml_mean_the_same_place() {
        let kernel: PciAddress = "0000:3b:00".parse().unwrap();
        assert_eq!(Ok(kernel), "00000000:3B:00.0".parse());
        assert_eq!(kernel.to_string(), "00000000:3B:00.0");
        for text in ["", "3b:00", "0000:3b", "0000:3b:00:1", "0000:+b:00", "000000000:3b:00", "0000:100:00", "x:y:z"] {
            assert_eq!(text.parse::<PciAddress>(), Err(InvalidPciAddress), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(domain: u32, bus: u8, device: u8) {
            let address = PciAddress { domain, bus, device };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(format!("{domain:04x}:{bus:02x}:{device:02x}").parse(), Ok(address));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "([0-9a-fA-F]{0,9}|[:.]|\\PC){0,12}") {
            let _any_answer = text.parse::<PciAddress>();
        }
    }
}
