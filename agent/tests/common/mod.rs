//! The agent as a process, for the tests of the whole binary.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// An emulated machine that others keep busy takes its time.
const DEADLINE: Duration = Duration::from_secs(40);

pub(crate) fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebb-agent"));
    // What the machine that runs the tests has set is none of their business.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EBB_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    agent().args(args).output().unwrap()
}

/// An agent that serves. Killed on drop.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) log: BufReader<ChildStderr>,
}

impl Serving {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_as(agent(), args)
    }

    /// With the surroundings that the command was given.
    pub(crate) fn start_as(mut command: Command, args: &[&str]) -> Self {
        command.args(["--standalone", "--listen", "127.0.0.1:0", "--log", "json"]).args(args);
        Self::spawn(command)
    }

    /// Of a command that is complete.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let started = until(&mut log, "started");
        let address = started["listen"].as_str().unwrap().parse().unwrap();
        Self { child, address, log }
    }

    /// Sends a request; returns status, head and body.
    pub(crate) fn ask(&self, head: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String, String) {
        self.ask(&format!("GET {path} HTTP/1.1"), "")
    }

    pub(crate) fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.get("/readyz").0 != 200 {
            assert!(Instant::now() < deadline, "no sample within 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn stop(mut self, signal: Signal) -> (Option<i32>, Value) {
        let begin = Instant::now();
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let last = until(&mut self.log, "stopped");
        let status = self.child.wait().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(8), "stopping took {:?}", begin.elapsed());
        (status.code(), last)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Reads log lines up to one with this message.
pub(crate) fn until(log: &mut impl BufRead, message: &str) -> Value {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the agent ended before `{message}`");
        let entry: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if entry["message"] == message {
            return entry;
        }
    }
}

pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Samples by name and labels. Panics on a line that neither format knows.
pub(crate) fn samples(page: &str) -> Vec<(String, f64)> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

pub(crate) fn write_tree(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// Panics on a family that docs/metrics.md does not have, with its type and what it means.
pub(crate) fn assert_documented(page: &str) {
    let documentation = include_str!("../../../docs/metrics.md");
    let mut help = ("", "");
    for line in page.lines() {
        if let Some(found) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = found;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert_eq!(help.0, name, "each family has a text");
            let row = documentation.lines().find(|row| row.starts_with(&format!("| `{name}` | {kind} |")));
            let row = row.unwrap_or_else(|| panic!("docs/metrics.md does not have the {kind} {name}: {}", help.1));
            assert!(row.contains(help.1.trim_end_matches('.')), "docs/metrics.md: {row}\nthe page: {}", help.1);
        }
    }
}
