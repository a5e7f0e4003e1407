//! A program: exit status 0 is done, 75 (`EX_TEMPFAIL` of sysexits.h) later, 99 a veto, anything else a failure. What it
//! prints last is the reason.

use std::process::{ExitStatus, Stdio};

use ebb_core::drain::HookOutcome;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{Asked, KEPT, tail};

const LATER: i32 = 75;
const VETO: i32 = 99;

/// Kills the program and all that it started.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It fails where all have ended, which is as well.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

pub(super) async fn run(words: Vec<String>, asked: Asked) -> HookOutcome {
    let Some((program, arguments)) = words.split_first() else {
        return HookOutcome::Failed("no program is named".into());
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(asked.facts().map(|(fact, value)| (format!("EBB_DRAIN_{}", fact.to_uppercase()), value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return HookOutcome::Failed(format!("start {program}: {error}")),
    };
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let _group = pid.map(Group);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, printed, complained) = tokio::join!(child.wait(), last_of(stdout), last_of(stderr));
    let said = if printed.is_empty() { complained } else { printed };
    match status {
        Ok(status) => outcome(status, said),
        Err(error) => HookOutcome::Failed(format!("wait for {program}: {error}")),
    }
}

fn outcome(status: ExitStatus, said: String) -> HookOutcome {
    match status.code() {
        Some(0) => HookOutcome::Done,
        Some(LATER) => HookOutcome::Later { after: None, why: said },
        Some(VETO) => HookOutcome::Veto(said),
        _ if said.is_empty() => HookOutcome::Failed(status.to_string()),
        _ => HookOutcome::Failed(format!("{status}: {said}")),
    }
}

/// Reads it all, so that the program never waits for us, and keeps its end.
async fn last_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; KEPT];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(KEPT));
    }
    tail(&kept)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_core::drain::HookPhase;

    use super::super::tests::asked;
    use super::*;

    async fn shell(script: &str) -> HookOutcome {
        run(["/bin/sh", "-c", script].map(String::from).to_vec(), asked(HookPhase::PreDrain)).await
    }

    #[tokio::test]
    async fn the_exit_status_is_the_answer_and_what_was_printed_the_reason() {
        let failed = |why: &str| HookOutcome::Failed(why.into());
        assert_eq!(shell("echo fine").await, HookOutcome::Done);
        assert_eq!(shell("echo epoch 7; exit 75").await, HookOutcome::Later { after: None, why: "epoch 7".into() });
        assert_eq!(shell("echo busy; exit 99").await, HookOutcome::Veto("busy".into()));
        assert_eq!(shell("echo broken >&2; exit 1").await, failed("exit status: 1: broken"));
        assert_eq!(shell("exit 2").await, failed("exit status: 2"));
        assert_eq!(shell("kill -9 $$").await, failed("signal: 9 (SIGKILL)"));
        let HookOutcome::Failed(why) = run(vec!["/absent".into()], asked(HookPhase::PreDrain)).await else { panic!() };
        assert!(why.starts_with("start /absent: No such file"), "{why}");
    }

    #[tokio::test]
    async fn a_hook_knows_what_it_is_asked_about_and_nothing_else() {
        let HookOutcome::Veto(said) = shell("env | sort; exit 99").await else { panic!() };
        let ours = said.split(' ').filter(|word| word.starts_with("EBB_")).collect::<Vec<_>>();
        let expected = [
            "EBB_DRAIN_DEADLINE=1970-01-01T00:01:00.000Z",
            "EBB_DRAIN_ID=d",
            "EBB_DRAIN_NODE=node-1",
            "EBB_DRAIN_PHASE=pre-drain",
            "EBB_DRAIN_PLANNED=false",
            "EBB_DRAIN_REASON=reclaimed",
            "EBB_DRAIN_TRIGGER=spot_interruption",
            "EBB_DRAIN_UNTIL=1970-01-01T00:00:30.000Z",
        ];
        assert_eq!(ours, expected);
        assert!(!said.contains("CARGO"), "{said}");
    }

    #[tokio::test]
    async fn much_output_is_read_to_its_end_and_its_end_is_kept() {
        let HookOutcome::Veto(said) = shell("seq 1 200000; exit 99").await else { panic!() };
        assert!(said.ends_with("199999 200000") && said.len() <= KEPT, "{}", said.len());
    }

    #[tokio::test]
    async fn a_hook_that_is_stopped_takes_all_that_it_started_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let hook = tokio::spawn(async move { shell(&script).await });
        let pid = loop {
            match std::fs::read_to_string(&file) {
                Ok(pid) => break pid.trim().to_owned(),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        hook.abort();
        // A zombie that nobody has waited for yet does not run any more.
        let runs = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            status.split(' ').nth(2).is_some_and(|state| state != "Z")
        };
        while runs() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
