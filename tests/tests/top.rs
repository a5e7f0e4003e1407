//! `ebb top` in a terminal, on an agent of a node whose GPUs the fake NVML plays.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ebb_tests::{Program, Signal, Terminal, binary, free_port, http, wait_until};

const SOON: Duration = Duration::from_secs(30);

struct Agent {
    address: String,
    _program: Program,
}

impl Agent {
    /// Returns when it has figures.
    async fn start(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("top");
        std::fs::create_dir_all(&dir).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        // Beside the tests, where cargo puts what they depend on.
        let library = std::env::current_exe().unwrap().with_file_name("libfake_nvml.so");
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fake-nvml/scenarios/8xh100.json");
        let mut command = Command::new(binary("ebb-agent"));
        command.env("FAKE_NVML_SCRIPT", script).arg("--nvml-library").arg(library);
        command.args(["--standalone", "--listen", &address, "--node-name", "ip-10-0-0-7", "--interval", "200ms"]);
        let program = Program::start("ebb-agent", command, dir.join(format!("{name}.log")));
        let ready = async || {
            let listens = tokio::net::TcpStream::connect(&address).await.is_ok();
            listens && http(&address, "GET", "/readyz", &[], "").await.0 == 200
        };
        wait_until("the agent's first sample", SOON, ready, async || program.log()).await;
        Self { address, _program: program }
    }

    fn top(&self, columns: u16, rows: u16) -> Terminal {
        let mut command = Command::new(binary("ebb"));
        command.args(["top", &self.address, "--interval", "200ms"]);
        Terminal::start(&command, columns, rows)
    }
}

fn any(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

#[tokio::test]
async fn a_node_is_watched_with_keys_in_a_window_that_changes() {
    let agent = Agent::start("keys").await;
    let mut top = agent.top(100, 36);
    let node = |lines: &[String]| lines[0].contains("ip-10-0-0-7") && any(lines, "8 GPUs NVIDIA H100 80GB HBM3");
    top.until("the node and its GPUs", node).await;
    assert!(top.is_taken_over());
    let gpus = top.lines().iter().filter(|line| line.contains(" of 79.6 GiB ")).count();
    assert_eq!(gpus, 8, "{}", top.lines().join("\n"));

    top.until("the busiest first", |lines| any(lines, " by CPU ")).await;
    top.press("n");
    top.until("them by name", |lines| any(lines, " by name ")).await;
    top.press("/no such container\r");
    top.until("what is left after the filter", |lines| any(lines, " 0 of ")).await;
    top.press("\u{1b}");
    top.until("all of them", |lines| !any(lines, " 0 of ") && any(lines, " by name ")).await;

    let fills = |columns: usize, rows: usize| {
        move |lines: &[String]| {
            let rules: Vec<_> = lines.iter().filter(|line| line.starts_with("──")).collect();
            let whole = !rules.is_empty() && rules.iter().all(|line| line.chars().count() == columns);
            node(lines) && whole && lines.len() == rows && lines[rows - 1].starts_with(" q quit ")
        }
    };
    top.resize(140, 45);
    top.until("a larger frame", fills(140, 45)).await;
    top.resize(60, 24);
    top.until("a smaller frame", fills(60, 24)).await;

    top.press("q");
    assert_eq!(top.ended().await.code(), Some(0));
    top.restored().await;
    assert!(!any(&top.lines(), "ip-10-0-0-7"), "{}", top.lines().join("\n"));
}

#[tokio::test]
async fn the_terminal_is_given_back_after_a_signal() {
    let agent = Agent::start("signal").await;
    let mut top = agent.top(80, 24);
    top.until("a frame", |lines| lines[0].contains("ip-10-0-0-7")).await;
    top.signal(Signal::TERM);
    assert_eq!(top.ended().await.code(), Some(0));
    top.restored().await;
}

#[tokio::test]
async fn an_agent_that_went_away_is_said_to_be_away() {
    let agent = Agent::start("away").await;
    let mut top = agent.top(80, 24);
    top.until("a frame", |lines| lines[0].contains("ip-10-0-0-7")).await;
    drop(agent);
    top.until("that it is away", |lines| any(lines, "No answer for") && lines[0].contains("ip-10-0-0-7")).await;
    // Control-C.
    top.press("\u{3}");
    assert_eq!(top.ended().await.code(), Some(0));
    top.restored().await;
}
