//! Builds the object that the agent embeds. A BPF target needs three things that stable Rust does not bring: the source
//! of `core`, a linker for LLVM bitcode, and leave to use unstable flags of a pinned compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Archive};
use crate::process::{cache, capture, root, run as show};
use crate::tools::lock;

const BPF_LINKER: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "ebpf/ebb.bpf.o";

/// Builds the kernel programs and writes ebpf/ebb.bpf.o, the object that the agent embeds.
///
/// The first run takes a few minutes, because it installs what stable Rust lacks: rust-src of the pinned compiler, with
/// `rustup component add rust-src` or else from Debian's package of the same version, unpacked in the cache; and
/// bpf-linker, built into the cache. The cache is $EBB_CACHE, or `ebb` in the user's cache folder. Needs no root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build, write nothing, and fail where the committed object differs by a byte.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let built = build()?;
    let (object, new) = (root().join(OBJECT), read(&built)?);
    if !args.check {
        fs::write(&object, &new).with_context(|| format!("write {}", object.display()))?;
        println!("wrote {OBJECT}: {} bytes", new.len());
        return Ok(());
    }
    if let Some(difference) = difference(&read(&object)?, &new) {
        bail!(
            "{OBJECT} is not what its source builds: {difference}\nThe new one is {}. Run `cargo xtask ebpf` and commit.",
            built.display()
        );
    }
    println!("{OBJECT} is what its source builds: {} bytes", new.len());
    Ok(())
}

/// The target of this machine, as the pinned compiler calls it.
pub(crate) fn host() -> Result<String> {
    Toolchain::find().map(|rust| rust.host)
}

/// The path of a fresh object. Its bytes depend on the source, the compiler and the linker only: no path of this
/// machine and no name of its processor goes in.
fn build() -> Result<PathBuf> {
    let rust = Toolchain::find()?;
    let (library, linker) = {
        let _lock = lock("ebpf")?;
        (rust.library()?, rust.bpf_linker()?)
    };
    let folder = root().join("target/ebpf");
    let flags = [
        "-Clink-arg=--btf".into(),
        // Nothing copies memory here, and the linker keeps these functions whether they are called or not.
        "-Clink-arg=--disable-memory-builtins".into(),
        // What cargo's trim-paths does for rust-src in the toolchain, for rust-src anywhere.
        format!("--remap-path-prefix={}=/rustc/{}/library", library.display(), rust.commit),
    ];
    eprintln!("building the kernel programs");
    show(
        Command::new("cargo")
            .args(["build", "--locked", "--quiet", "--release", "--target", TARGET, "-Zbuild-std=core"])
            .args(["-Ztrim-paths", "--config", "profile.release.trim-paths='all'", "--target-dir"])
            .arg(&folder)
            .current_dir(root().join("ebpf"))
            .env("AYA_BPF_TARGET_ARCH", "x86_64") // Else that of this machine; we use nothing that depends on it.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env("LD_LIBRARY_PATH", rust.sysroot.join("lib")) // The linker runs on the compiler's own LLVM.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", library), // Not for us by its name, but the cargo it belongs to is pinned.
    )?;
    let linked = folder.join(TARGET).join("release/ebb-ebpf");
    let stripped = folder.join("ebb.bpf.o");
    // The BTF, made of the debug information, stays; the kernel has no use for the rest of it.
    capture(
        Command::new(rust.objcopy())
            .arg("--strip-debug")
            .args([&linked, &stripped])
            .env("LD_LIBRARY_PATH", rust.sysroot.join("lib")),
    )?;
    Ok(stripped)
}

/// The pinned compiler, as it says of itself.
struct Toolchain {
    commit: String,
    host: String,
    llvm: String,
    release: String,
    sysroot: PathBuf,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let rustc = |argument: &[&str]| capture(Command::new("rustc").args(argument).current_dir(root()));
        let version = rustc(&["-vV"])?;
        let field = |name: &str| {
            let value = version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(str::to_owned).with_context(|| format!("find {name} in the output of rustc -vV:\n{version}"))
        };
        Ok(Self {
            commit: field("commit-hash")?,
            host: field("host")?,
            llvm: field("LLVM version")?,
            release: field("release")?,
            sysroot: rustc(&["--print", "sysroot"])?.trim_end().into(),
        })
    }

    fn cache(&self) -> Result<PathBuf> {
        let folder = cache()?.join(format!("ebpf/rust-{}", self.release));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }

    fn objcopy(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-objcopy")
    }

    /// The folder with the source of `core`.
    fn library(&self) -> Result<PathBuf> {
        let of_rustup = self.sysroot.join("lib/rustlib/src/rust/library");
        let of_debian = self.cache()?.join("rust-src/library");
        let is_there = |library: &Path| library.join("core/Cargo.toml").exists();
        if is_there(&of_rustup) {
            return Ok(of_rustup);
        }
        if is_there(&of_debian) {
            return Ok(of_debian);
        }
        eprintln!("installing rust-src {} with rustup", self.release);
        let rustup = capture(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(root()));
        if rustup.is_ok() && is_there(&of_rustup) {
            return Ok(of_rustup);
        }
        eprintln!("rustup could not; fetching Debian's package of it");
        let debian = self.unpack_debian_source(&of_debian);
        debian.with_context(|| match rustup {
            Err(error) => format!("find rust-src {}; rustup said: {error}", self.release),
            Ok(_) => format!("find rust-src {}; rustup put none into {}", self.release, self.sysroot.display()),
        })?;
        Ok(of_debian)
    }

    fn unpack_debian_source(&self, library: &Path) -> Result<()> {
        let folder = self.cache()?.join("apt");
        // Newer compilers reach these first.
        let apt = Apt::new(&folder, &["trixie-backports", "testing", "sid"].map(|suite| (Archive::Main, suite)))?;
        // Each is fetched by itself: the mirror need not have them all.
        let update = apt.update();
        let known = apt.ask(&["madison", "rust-src"])?;
        let versions = known.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        let version = versions.into_iter().find(|version| version.starts_with(&format!("{}+", self.release)));
        let Some(version) = version else {
            bail!("find rust-src {} on the mirror; apt-get update: {update:?}; known:\n{known}", self.release)
        };
        let unpacked = folder.join("unpacked");
        apt.unpack("rust-src", version, &unpacked)?;
        let unpacked = unpacked.join(format!("usr/src/rustc-{}/library", self.release));
        fs::create_dir_all(library.parent().expect("the cache is above it"))?;
        fs::rename(&unpacked, library).with_context(|| format!("move {} into its place", unpacked.display()))?;
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }

    /// The path of bpf-linker. One per compiler, whose LLVM it reads bitcode with: an older one would refuse the bitcode.
    fn bpf_linker(&self) -> Result<PathBuf> {
        let folder = self.cache()?.join(format!("bpf-linker-{BPF_LINKER}"));
        let linker = folder.join("bin/bpf-linker");
        if linker.exists() {
            return Ok(linker);
        }
        eprintln!("building bpf-linker {BPF_LINKER}");
        let major = self.llvm.split('.').next().expect("the first part of a split is always there");
        show(
            Command::new("cargo")
                .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"])
                .args(["--features", &format!("llvm-{major}"), "--root"])
                .arg(&folder)
                .env("LLVM_PREFIX", self.llvm_prefix()?)
                .env_remove("CARGO_TARGET_DIR"),
        )?;
        Ok(linker)
    }

    /// A folder that looks like an installation of LLVM to a build script, around the compiler's own library.
    fn llvm_prefix(&self) -> Result<PathBuf> {
        let folder = self.sysroot.join("lib");
        let libraries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        let mut libraries = libraries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_llvm =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libLLVM.so."));
        let library = libraries.find(is_llvm);
        let library = library.with_context(|| {
            format!(
                "find libLLVM.so.* in {}: bpf-linker needs a compiler that brings its LLVM, as rustup's",
                folder.display()
            )
        })?;
        let prefix = self.cache()?.join("llvm");
        fs::create_dir_all(prefix.join("lib")).with_context(|| format!("create {}", prefix.display()))?;
        let link = prefix.join("lib/libLLVM.so");
        if link.is_symlink() {
            fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        }
        std::os::unix::fs::symlink(library, &link).with_context(|| format!("link {}", link.display()))?;
        Ok(prefix)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn difference(committed: &[u8], built: &[u8]) -> Option<String> {
    let at = committed.iter().zip(built).position(|(committed, built)| committed != built);
    match (at, committed.len(), built.len()) {
        (None, old, new) if old == new => None,
        (None, old, new) => Some(format!("{old} bytes were committed, {new} built, and the shorter begins the longer")),
        (Some(at), old, new) => Some(format!(
            "byte {at} is {:#04x} but was built as {:#04x} ({old} bytes committed, {new} built)",
            committed[at], built[at]
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_says_where_it_is() {
        assert_eq!(difference(b"same", b"same"), None);
        let told = difference(b"same", b"some").expect("they differ");
        assert!(told.starts_with("byte 1 is 0x61 but was built as 0x6f"), "{told}");
        let told = difference(b"same", b"sam").expect("one is shorter");
        assert!(told.starts_with("4 bytes were committed, 3 built"), "{told}");
    }
}
