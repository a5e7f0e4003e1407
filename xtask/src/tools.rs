//! Programs the project needs besides cargo: where each one comes from and where it is cached.
//! Whence they are fetched is the machine's own configuration (cargo, go, pip, apt); no registry is named here.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{cache, capture, root, run};

const CADVISOR: &str = "0.56.2";
const CARGO_DENY: &str = "0.20.2";
const CARGO_FUZZ: &str = "0.13.2";
const EC2_METADATA_MOCK: &str = "1.13.0";
const HELM: &str = "v4.3.1";
const METRICS_SERVER: &str = "0.9.0";
const MOTO: &str = "5.2.5";
const RAY: &str = "2.60.0";

/// The path of helm; builds it from its Go module when it is not in the cache.
pub(crate) fn helm() -> Result<PathBuf> {
    once(&format!("helm-{HELM}"), |folder| {
        eprintln!("building helm {HELM} with Go");
        let package = format!("helm.sh/helm/v4/cmd/helm@{HELM}");
        // The version that helm reports is set at link time; charts may ask for it.
        let flags = format!("-s -w -X helm.sh/helm/v4/internal/version.version={HELM}");
        run(Command::new("go")
            .args(["install", "-trimpath", "-ldflags", &flags, &package])
            .env("CGO_ENABLED", "0")
            .env("GOBIN", folder)
            .env("GOFLAGS", "")
            .env("GOWORK", "off"))
    })
    .map(|folder| folder.join("helm"))
}

/// The path of cAdvisor; builds it from the main in `xtask/cadvisor` when it is not in the cache.
pub(crate) fn cadvisor() -> Result<PathBuf> {
    // Go's own cache makes a build of what did not change a matter of a second; the stamp would hide a changed main.
    let program = cache()?.join("tools").join(format!("cadvisor-{CADVISOR}"));
    eprintln!("building cAdvisor {CADVISOR} with Go");
    run(Command::new("go")
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .args([program.as_os_str(), ".".as_ref()])
        .current_dir(root().join("xtask/cadvisor"))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        .env("GOWORK", "off"))?;
    Ok(program)
}

/// The path of ec2-metadata-mock, Amazon's own mock of EC2's instance metadata service; builds it from its Go module when it
/// is not in the cache.
pub(crate) fn ec2_metadata_mock() -> Result<PathBuf> {
    once(&format!("ec2-metadata-mock-{EC2_METADATA_MOCK}"), |folder| {
        eprintln!("building ec2-metadata-mock {EC2_METADATA_MOCK} with Go");
        let package = format!("github.com/aws/amazon-ec2-metadata-mock/cmd/ec2-metadata-mock@v{EC2_METADATA_MOCK}");
        run(Command::new("go")
            .args(["install", "-trimpath", "-ldflags", "-s -w", &package])
            .env("CGO_ENABLED", "0")
            .env("GOBIN", folder)
            .env("GOFLAGS", "")
            .env("GOWORK", "off"))
    })
    .map(|folder| folder.join("ec2-metadata-mock"))
}

/// The path of metrics-server; builds it from its Go module when it is not in the cache.
pub(crate) fn metrics_server() -> Result<PathBuf> {
    once(&format!("metrics-server-{METRICS_SERVER}"), |folder| {
        eprintln!("building metrics-server {METRICS_SERVER} with Go");
        let package = format!("sigs.k8s.io/metrics-server/cmd/metrics-server@v{METRICS_SERVER}");
        run(Command::new("go")
            .args(["install", "-trimpath", "-ldflags", "-s -w", &package])
            .env("CGO_ENABLED", "0")
            .env("GOBIN", folder)
            .env("GOFLAGS", "")
            .env("GOWORK", "off"))
    })
    .map(|folder| folder.join("metrics-server"))
}

/// The path of cargo-deny; builds it when it is not in the cache.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    cargo_install("cargo-deny", CARGO_DENY)
}

/// The path of cargo-fuzz; builds it when it is not in the cache.
pub(crate) fn cargo_fuzz() -> Result<PathBuf> {
    cargo_install("cargo-fuzz", CARGO_FUZZ)
}

fn cargo_install(name: &str, version: &str) -> Result<PathBuf> {
    once(&format!("{name}-{version}"), |folder| {
        eprintln!("building {name} {version}");
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "--locked", "--quiet", "--no-track", "--root"]).arg(folder);
        run(cargo.args([name, "--version", version]))
    })
    .map(|folder| folder.join("bin").join(name))
}

/// The path of moto_server, another fake of AWS; makes a Python environment with it when it is not in the cache.
pub(crate) fn moto_server() -> Result<PathBuf> {
    once(&format!("moto-{MOTO}"), |folder| {
        eprintln!("making a Python environment with moto {MOTO}");
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let package = format!("moto[server,autoscaling,ec2]=={MOTO}");
        run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet", &package]))
    })
    .map(|folder| folder.join("bin/moto_server"))
}

/// The folder with Ray's programs and their Python; makes a Python environment with it when it is not in the cache.
pub(crate) fn ray() -> Result<PathBuf> {
    once(&format!("ray-{RAY}"), |folder| {
        eprintln!("making a Python environment with Ray {RAY}");
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let package = format!("ray=={RAY}");
        run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet", &package]))
    })
    .map(|folder| folder.join("bin"))
}

/// Installs those of the Debian packages that are missing. Needs root.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let is_installed = |package: &&&str| {
        let mut query = Command::new("dpkg-query");
        capture(query.args(["--show", "--showformat=${Status}", package]))
            .is_ok_and(|status| status.ends_with(" installed"))
    };
    let (installed, missing): (Vec<&str>, Vec<&str>) = packages.iter().partition(|package| is_installed(package));
    if missing.is_empty() {
        return Ok(());
    }
    drop(installed);
    let _lock = lock("apt")?;
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1"); // Services in these packages are not started: whoever installs them does so on purpose.
        capture(&mut apt)
    };
    // The package lists of a fresh machine are empty or old; fetch them only when that turns out to matter.
    if install().is_err() {
        capture(Command::new("apt-get").args(["update", "--quiet=2"]))?;
        install()?;
    }
    Ok(())
}

/// Holds the lock of this name on this machine until the file is dropped.
pub(crate) fn lock(name: &str) -> Result<File> {
    let folder = cache()?.join("locks");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let file = File::create(folder.join(name)).with_context(|| format!("open the lock {name}"))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another xtask that holds {name}");
        file.lock().with_context(|| format!("take the lock {name}"))?;
    }
    Ok(file)
}

/// A folder of the cache that is filled once, and whole: it counts only when its stamp is there.
fn once(name: &str, fill: impl FnOnce(&PathBuf) -> Result<()>) -> Result<PathBuf> {
    let folder = cache()?.join("tools").join(name);
    let stamp = folder.join(".complete");
    if stamp.exists() {
        return Ok(folder);
    }
    let _lock = lock(name)?;
    if !stamp.exists() {
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        fill(&folder)?;
        File::create(&stamp).with_context(|| format!("stamp {}", folder.display()))?;
    }
    Ok(folder)
}
