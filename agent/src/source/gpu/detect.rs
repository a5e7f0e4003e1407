//! How many NVIDIA GPUs the node has, by the PCI bus: it shows them also where their driver is missing or broken.
//! Nothing is known of their use here.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::source::{Error, open};

/// PCI's number of NVIDIA.
const NVIDIA: &str = "0x10de";
/// PCI's class of display controllers, 3D controllers among them. NVIDIA's network and bridge chips are of others.
const DISPLAY: &str = "0x03";

pub fn detect(sys_root: &Path) -> Result<usize, Error> {
    let devices = sys_root.join("bus/pci/devices");
    let entries = match fs::read_dir(&devices) {
        Ok(entries) => entries,
        // No PCI bus at all, but a `/sys` that would show one: so no GPU on it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && sys_root.join("bus").is_dir() => {
            return Ok(0);
        }
        Err(source) => return Err(Error::Read { path: devices, source }),
    };
    let mut gpus = 0;
    for entry in entries {
        let device = entry.map_err(|source| Error::Read { path: devices.clone(), source })?.path();
        if read(device.join("vendor"))?.trim_end() == NVIDIA && read(device.join("class"))?.starts_with(DISPLAY) {
            gpus += 1;
        }
    }
    Ok(gpus)
}

fn read(path: PathBuf) -> Result<String, Error> {
    match open(&path).and_then(io::read_to_string) {
        Ok(text) => Ok(text),
        // Unplugged just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_display_of_nvidia_is_a_gpu() {
        let check = |devices: &[(&str, &str)], expected| {
            let sys = tempfile::tempdir().unwrap();
            for (number, (vendor, class)) in devices.iter().enumerate() {
                let device = sys.path().join(format!("bus/pci/devices/0000:00:{number:02x}.0"));
                fs::create_dir_all(&device).unwrap();
                fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
                fs::write(device.join("class"), format!("{class}\n")).unwrap();
            }
            fs::create_dir_all(sys.path().join("bus")).unwrap();
            assert_eq!(detect(sys.path()).unwrap(), expected, "{devices:?}");
        };
        check(&[], 0);
        check(&[("0x1d0f", "0x030000")], 0);
        check(&[("0x10de", "0x068000")], 0);
        check(&[("0x1d0f", "0x020000"), ("0x10de", "0x030200")], 1);
        check(&[("0x10de", "0x030000"), ("0x10de", "0x030200")], 2);
    }

    #[test]
    fn without_sys_nothing_is_known() {
        assert_eq!(detect(Path::new("/nonexistent")).unwrap_err().kind(), "missing");
    }
}
