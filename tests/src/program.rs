//! Programs of this workspace, built and run by a test.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A program that a test started. Killed on drop, as suddenly as a node can die.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// What it prints is added to the log.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("the lab's folder takes a log");
        let output = file.try_clone().expect("a file can be shared");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(file).spawn();
        let child = child.unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child can be asked").is_none()
    }

    /// All that it has printed, over all starts under this name.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(mut self) {
        self.end();
    }

    /// SIGTERM; panics when the program has not ended by itself in time.
    pub async fn terminate(mut self, within: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child can be asked") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} did not end within {within:?} of SIGTERM", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Any other signal: `Signal::STOP` and `Signal::CONT` make a program that hangs.
    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).unwrap_or_else(|error| panic!("signal {}: {error}", self.name));
    }

    fn end(&mut self) {
        // It may have ended by itself; either way there is nothing left after the wait.
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// The binary of a package of this workspace (`ebb-agent`), built at the first call.
pub fn binary(package: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    built.entry(package.to_owned()).or_insert_with(|| build(package)).clone()
}

fn build(package: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Benchmarks want `release` of what they measure; xtask only brings up the lab.
    let profile = std::env::var("EBB_BUILD_PROFILE").ok().filter(|_| package != "xtask");
    let profile = profile.as_deref().unwrap_or("dev");
    command.current_dir(root()).args(["build", "--quiet", "--message-format=json", "--package", package]);
    command.args(["--profile", profile]);
    let output = command.stderr(Stdio::inherit()).output().expect("cargo starts");
    assert!(output.status.success(), "{package} does not build");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    executable.unwrap_or_else(|| panic!("{package} has no binary"))
}

/// A port of loopback that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a listener has an address").port()
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies one folder below the root")
}
