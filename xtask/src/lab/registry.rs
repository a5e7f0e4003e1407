//! Which labs this machine has: one file per block of ports, which both reserves the block and names the lab's folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::control_plane::Ports;
use crate::process;

/// Below the kernel's usual range for outgoing connections (32768 up), so that none of those takes a lab's port.
const LAST_BASE: u16 = 32_000;

/// Takes the block of ports asked for, or the first free one, for the lab in `dir`.
pub(super) fn reserve(dir: &Path, asked: Option<u16>) -> Result<u16> {
    fs::create_dir_all(folder()?).context("create the folder of running labs")?;
    if let Some(base) = asked {
        if let Some(port) = Ports::from_base(base).all().into_iter().find(|port| !is_free(*port)) {
            bail!("port {port} is in use: name another --port-base, or none to get a free one");
        }
        if !take(base, dir)? {
            let owner = fs::read_to_string(folder()?.join(base.to_string())).unwrap_or_default();
            bail!("the ports from {base} belong to the lab in {owner}: stop it, or name another --port-base");
        }
        return Ok(base);
    }
    for base in (Ports::DEFAULT_BASE..LAST_BASE).step_by(Ports::BLOCK) {
        if Ports::from_base(base).all().into_iter().all(is_free) && take(base, dir)? {
            return Ok(base);
        }
    }
    bail!("no block of {} free ports between {} and {LAST_BASE}", Ports::BLOCK, Ports::DEFAULT_BASE)
}

/// The folders of all labs that were started and not taken down.
pub(super) fn labs() -> Result<Vec<PathBuf>> {
    Ok(entries()?.into_iter().map(|(_, dir)| dir).collect())
}

pub(super) fn release(dir: &Path) -> Result<()> {
    for (file, owner) in entries()? {
        if owner == dir {
            super::ignore_missing(fs::remove_file(&file)).with_context(|| format!("remove {}", file.display()))?;
        }
    }
    Ok(())
}

fn take(base: u16, dir: &Path) -> Result<bool> {
    match File::create_new(folder()?.join(base.to_string())) {
        Ok(mut file) => {
            file.write_all(dir.as_os_str().as_encoded_bytes()).context("reserve the ports")?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).context("reserve the ports"),
    }
}

fn entries() -> Result<Vec<(PathBuf, PathBuf)>> {
    let Ok(files) = fs::read_dir(folder()?) else { return Ok(Vec::new()) };
    let mut entries = Vec::new();
    for file in files {
        let file = file.context("list running labs")?.path();
        // One that is gone by now was released by another `down`.
        if let Ok(dir) = fs::read_to_string(&file) {
            entries.push((file, PathBuf::from(dir)));
        }
    }
    entries.sort();
    Ok(entries)
}

fn folder() -> Result<PathBuf> {
    Ok(process::cache()?.join("lab/running"))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
