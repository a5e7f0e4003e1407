//! The file system that a VM starts with: a `cpio` archive, which the kernel unpacks into memory.
//! Programs lie where they lie here, with the libraries that they load, so that paths compiled into them hold.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

#[derive(Default)]
pub(super) struct Image {
    archive: Vec<u8>,
    entries: BTreeSet<String>,
}

impl Image {
    pub(super) fn folder(&mut self, path: &str) {
        let mut parents = String::new();
        for part in Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))) {
            parents.push('/');
            parents += &part.as_os_str().to_string_lossy();
            self.entry(&parents.clone(), FOLDER, &[]);
        }
    }

    pub(super) fn file(&mut self, path: &str, content: &[u8], permissions: u32) {
        self.parent(path);
        self.entry(path, FILE | permissions, content);
    }

    /// A file of this machine, at its own path.
    pub(super) fn copy(&mut self, path: &Path) -> Result<()> {
        let read =
            |path: &Path| -> Result<_> { Ok((fs::read(path)?, fs::metadata(path)?.permissions().mode() & 0o777)) };
        let (content, permissions) = read(path).with_context(|| format!("read {}", path.display()))?;
        self.file(&path.to_string_lossy(), &content, permissions);
        Ok(())
    }

    /// A program of this machine at its own path, without what only a debugger reads, and the libraries it loads.
    pub(super) fn program(&mut self, path: &Path) -> Result<()> {
        let stripped = std::env::temp_dir().join(format!("ebb-vm-{}", std::process::id()));
        capture(Command::new("strip").arg("-o").args([&stripped, path]))?;
        let content = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()));
        fs::remove_file(&stripped).with_context(|| format!("remove {}", stripped.display()))?;
        self.file(&path.to_string_lossy(), &content?, 0o755);
        let libraries = capture(Command::new("ldd").arg(path))?;
        libraries.lines().filter_map(library).try_for_each(|library| self.copy(Path::new(library)))
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("/TRAILER!!!", 0, &[]);
        self.archive
    }

    fn parent(&mut self, path: &str) {
        if let Some(parent) = Path::new(path).parent() {
            self.folder(&parent.to_string_lossy());
        }
    }

    /// The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        if !self.entries.insert(path.to_owned()) {
            return;
        }
        let name = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).expect("files of a few megabytes");
        let name_size = u32::try_from(name.len() + 1).expect("paths are short");
        let number = u32::try_from(self.entries.len()).expect("a few dozen files");
        // Inode, mode, owner, group, links, time, size, device (2), special device (2), size of the name, no checksum.
        let header = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.archive.extend(b"070701");
        header.iter().for_each(|field| self.archive.extend(format!("{field:08x}").bytes()));
        self.archive.extend(name.bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0000000000)`, or the loader alone.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_holds_each_folder_once_and_before_what_is_in_it() {
        let mut image = Image::default();
        image.file("/a/b/file", b"12345", 0o755);
        image.folder("/a/b");
        let archive = image.finish();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let names: Vec<&str> =
            text.split("070701").skip(1).map(|entry| entry[104..].split('\0').next().unwrap_or("")).collect();
        assert_eq!(names, ["a", "a/b", "a/b/file", "TRAILER!!!"]);
        assert!(text.contains("12345") && text.contains("000081ed"), "{text}");
    }

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let check = |line, expected| assert_eq!(library(line), expected);
        check("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f5)", Some("/lib/x86_64-linux-gnu/libc.so.6"));
        check("\t/lib64/ld-linux-x86-64.so.2 (0x00007f5)", Some("/lib64/ld-linux-x86-64.so.2"));
        check("\tlinux-vdso.so.1 (0x00007ffc)", None);
        check("\tstatically linked", None);
    }
}
