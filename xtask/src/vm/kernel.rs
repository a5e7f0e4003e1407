//! Debian's kernels: which there are, and the image of one of them in the cache.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Archive};
use crate::process::cache;
use crate::tools::lock;

/// From the oldest release that the mirror may still have to the newest kernels there are. 5.10 is bullseye's, 6.1
/// bookworm's, 6.12 trixie's; backports keeps those in between, and it or sid has the newest.
const SUITES: [(Archive, &str); 6] = [
    (Archive::Main, "bullseye"),
    (Archive::Security, "bullseye-security"),
    (Archive::Main, "bookworm"),
    (Archive::Main, "trixie"),
    (Archive::Main, "trixie-backports"),
    (Archive::Main, "sid"),
];

pub(super) const NEWEST: &str = "newest";
/// From 6.19 on it is the package `linux-binary-…` that has the kernel in it.
const PACKAGES: &str = r"^linux-(binary|image)-[0-9]+\.[0-9]+\.[0-9].*-cloud-amd64$";
const IMAGE: &str = "vmlinuz";
/// Holds the version; written last.
const STAMP: &str = "version";

pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// Debian's, such as `6.1.176-1`.
    pub(super) version: String,
}

/// The kernel that was `asked` for: [`NEWEST`], or the beginning of a version. Fetched if it is not in the cache, or if
/// there may be a newer one and one is wanted.
pub(super) fn find(asked: &str, update: bool) -> Result<Kernel> {
    let _lock = lock("vm")?;
    let folder = cache()?.join("vm/kernels").join(asked);
    let (image, stamp) = (folder.join(IMAGE), folder.join(STAMP));
    let cached = fs::read_to_string(&stamp).ok();
    if let Some(version) = cached.clone().filter(|_| !update) {
        return Ok(Kernel { image, version });
    }

    let apt = Apt::new(&cache()?.join("vm/apt"), &SUITES)?;
    eprintln!("looking for Debian's kernels");
    // Not every mirror has them all; what is missing shows when no kernel is found.
    let updated = apt.update();
    let names = apt.ask(&["search", "--names-only", PACKAGES])?;
    let names: Vec<&str> = names.lines().filter_map(|line| line.split(' ').next()).collect();
    let shown = if names.is_empty() { String::new() } else { apt.ask(&[&["show"], &names[..]].concat())? };
    let known = packages(&shown);
    let (mut failure, candidates) = (None, newest_first(&known, asked));
    for (package, version) in &candidates {
        if cached.as_deref() == Some(version) {
            return Ok(Kernel { image, version: (*version).to_owned() });
        }
        eprintln!("fetching {package} {version}");
        match fetch(&apt, package, version, &folder) {
            Ok(()) => return Ok(Kernel { image, version: (*version).to_owned() }),
            // Mirrors list kernels whose files are not there any more, or not yet.
            Err(error) => {
                eprintln!("not to be had: {error:#}");
                failure = Some(error);
            }
        }
    }
    match failure {
        Some(error) => Err(error.context(format!("fetch one of {} kernels {asked}, oldest last", candidates.len()))),
        None => {
            let known: Vec<&str> = known.iter().map(|(_, version)| *version).collect();
            bail!("find kernel {asked} on the mirror; it has {}; apt-get update: {updated:?}", known.join(", "))
        }
    }
}

fn fetch(apt: &Apt, package: &str, version: &str, folder: &Path) -> Result<()> {
    let unpacked = folder.with_extension("unpacked");
    let clear = |folder: &Path| match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    };
    clear(&unpacked)?;
    fs::create_dir_all(&unpacked).with_context(|| format!("create {}", unpacked.display()))?;
    apt.unpack(package, version, &unpacked)?;
    let release = package.trim_start_matches("linux-binary-").trim_start_matches("linux-image-");
    let vmlinuz = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let vmlinuz = vmlinuz.into_iter().map(|path| unpacked.join(path)).find(|path| path.is_file());
    let vmlinuz = vmlinuz.with_context(|| format!("find a kernel in {package} {version}"))?;
    clear(folder)?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::rename(&vmlinuz, folder.join(IMAGE)).with_context(|| format!("move {} into its place", vmlinuz.display()))?;
    // All that a VM needs of drivers is built in.
    clear(&unpacked)?;
    fs::write(folder.join(STAMP), version).with_context(|| format!("stamp {}", folder.display()))
}

/// Names and versions in the output of `apt-cache show`.
fn packages(shown: &str) -> Vec<(&str, &str)> {
    let packages = shown.split("\n\n").map(|stanza| (field(stanza, "Package"), field(stanza, "Version")));
    packages.filter_map(|(package, version)| package.zip(version)).collect()
}

fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn newest_first<'a>(known: &[(&'a str, &'a str)], asked: &str) -> Vec<(&'a str, &'a str)> {
    // 6.1 is not the beginning of 6.12.
    let begins = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
    let is_meant = |version: &str| asked == NEWEST || version.strip_prefix(asked).is_some_and(begins);
    let mut meant: Vec<_> = known.iter().copied().filter(|(_, version)| is_meant(version)).collect();
    meant.sort_by_key(|(package, version)| Reverse((numbers(version), package.starts_with("linux-binary-"))));
    meant
}

/// The numbers in a version, by which kernels are ordered.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "\
Package: linux-image-6.1.0-9-cloud-amd64
Source: linux-signed-amd64
Version: 6.1.27-1
Description: Linux 6.1
 Version: of no importance

Package: linux-image-6.1.0-50-cloud-amd64
Version: 6.1.176-1

Package: linux-image-6.18.15+deb13-cloud-amd64
Version: 6.18.15-1~bpo13+1
";

    #[test]
    fn the_newest_kernel_of_a_line_is_found() {
        let known = packages(SHOWN);
        let check = |asked, version| {
            let found = newest_first(&known, asked);
            assert_eq!(found.first().map(|(_, version)| *version), version, "{asked}");
        };
        check("6.1", Some("6.1.176-1"));
        check("6.1.27", Some("6.1.27-1"));
        check("6.1.2", None);
        check("6.18", Some("6.18.15-1~bpo13+1"));
        check(NEWEST, Some("6.18.15-1~bpo13+1"));
        check("5.10", None);
        assert_eq!(newest_first(&known, "6.1").len(), 2);
    }
}
