//! Cgroups as a kubelet makes them, in the hierarchies that this machine has. Removed on drop.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const CONTAINERS: usize = 2;

pub(super) struct Pods {
    /// The folder of all pods, in each hierarchy.
    roots: Vec<PathBuf>,
    /// Of each container, below any of the roots.
    containers: Vec<PathBuf>,
}

impl Pods {
    pub(super) fn make(count: usize) -> Result<Self> {
        let mount = Path::new("/sys/fs/cgroup");
        let hierarchies: Vec<PathBuf> = if mount.join("cgroup.controllers").exists() {
            fs::write(mount.join("cgroup.subtree_control"), "+cpu +memory +io").context("enable controllers")?;
            vec![mount.to_owned()]
        } else {
            ["cpu", "cpuacct", "memory", "unified"]
                .map(|name| mount.join(name))
                .into_iter()
                .filter(|it| it.exists())
                .collect()
        };
        let roots = hierarchies.iter().map(|hierarchy| hierarchy.join("kubepods")).collect();
        let mut pods = Self { roots, containers: Vec::new() };
        for pod in 0..count {
            let uid = format!("{pod:08x}-0000-4000-8000-{pod:012x}");
            for container in 0..CONTAINERS {
                let id = format!("{:064x}", pod * CONTAINERS + container);
                pods.containers.push(Path::new("burstable").join(format!("pod{uid}")).join(id));
            }
        }
        for root in &pods.roots {
            for container in &pods.containers {
                let folder = root.join(container);
                fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            }
        }
        Ok(pods)
    }

    /// Moves a process to a container's cgroups.
    pub(super) fn put(&self, pid: u32, container: usize) -> Result<()> {
        for root in &self.roots {
            let file = root.join(&self.containers[container]).join("cgroup.procs");
            fs::write(&file, pid.to_string()).with_context(|| format!("write to {}", file.display()))?;
        }
        Ok(())
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for root in &self.roots {
            if let Err(error) = remove(root) {
                eprintln!("{} was not removed: {error}", root.display());
            }
        }
    }
}

/// A cgroup goes by rmdir, without its files, once nothing is below it.
fn remove(folder: &Path) -> std::io::Result<()> {
    for child in fs::read_dir(folder)?.flatten() {
        if child.file_type()?.is_dir() {
            remove(&child.path())?;
        }
    }
    fs::remove_dir(folder)
}
