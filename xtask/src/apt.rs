//! Debian packages that this machine does not have installed, or not in this version: fetched through an apt of its own,
//! which leaves the machine's as it is, asks the same mirrors and trusts the same keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;

/// Which of a Debian mirror's archives.
#[derive(Clone, Copy)]
pub(crate) enum Archive {
    Main,
    Security,
}

pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Keeps its state in `folder`.
    pub(crate) fn new(folder: &Path, suites: &[(Archive, &str)]) -> Result<Self> {
        for part in ["archives/partial", "lists/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("create {}", folder.display()))?;
        }
        let sites = capture(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
        let mut sources = String::new();
        for (archive, suite) in suites {
            let name = match archive {
                Archive::Main => "/debian",
                Archive::Security => "/debian-security",
            };
            let mirror = sites.lines().map(|site| site.trim_end_matches('/')).find(|site| site.ends_with(name));
            let mirror = mirror.with_context(|| format!("find a mirror of {name} among apt's sources"))?;
            sources += &format!("deb {mirror} {suite} main\n");
        }
        let list = folder.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("write {}", list.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Fetches the lists of packages. A suite that the mirror lacks is an error, after those that it has.
    pub(crate) fn update(&self) -> Result<()> {
        capture(self.command("apt-get").args(["update", "--quiet=2"])).map(drop)
    }

    /// `apt-cache` with these arguments.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<String> {
        capture(self.command("apt-cache").args(arguments))
    }

    /// Unpacks one version of a package into `target`.
    pub(crate) fn unpack(&self, package: &str, version: &str, target: &Path) -> Result<()> {
        let download = self.folder.join("download");
        fs::create_dir_all(&download).with_context(|| format!("create {}", download.display()))?;
        let package = format!("{package}={version}");
        capture(self.command("apt-get").args(["download", "--quiet=2", &package]).current_dir(&download))?;
        let file = fs::read_dir(&download)?.filter_map(|entry| Some(entry.ok()?.path()));
        let file = file.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        let file = file.with_context(|| format!("find the package in {}", download.display()))?;
        capture(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(target))?;
        fs::remove_dir_all(&download).with_context(|| format!("remove {}", download.display()))
    }

    fn command(&self, program: &str) -> Command {
        let options = [
            ("Dir::Cache", self.folder.clone()),
            ("Dir::Etc::SourceList", self.folder.join("sources.list")),
            ("Dir::Etc::SourceParts", "-".into()),
            ("Dir::State::Lists", self.folder.join("lists")),
        ];
        let mut command = Command::new(program);
        command
            .args(options.iter().map(|(name, value)| format!("-o{name}={}", value.display())))
            .args(["-oAcquire::Languages=none", "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"])
            // Its own user could not enter the user's cache folder.
            .arg("-oAPT::Sandbox::User=root");
        command
    }
}
