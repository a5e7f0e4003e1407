//! Runs hooks: programs on this node, and services that are called. What their answers mean is the core's to say.

mod exec;
mod http;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use ebb_config::{Call, DEFAULT_TIMEOUT, Service};
use ebb_core::drain::{Hook, HookOutcome, HookPhase, OnFailure, When};
use ebb_core::intent::Intent;
use ebb_core::ray::node_drain;
use ebb_core::time::Instant;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::clock::Clock;

/// Answers are kept to this many bytes, the last ones: they go into a condition's message.
const KEPT: usize = 4096;

/// What the coordinator has told of Ray.
#[derive(Debug)]
pub struct AboutRay {
    /// Whether there is any; `None`: it has not told yet.
    pub told: watch::Receiver<Option<bool>>,
    pub clock: Clock,
}

impl AboutRay {
    /// `None`: it is to be asked.
    fn outcome(&self, about: &Intent) -> Option<HookOutcome> {
        match *self.told.borrow() {
            Some(true) => None,
            None if node_drain::awaits_word(self.clock.now(), self.clock.begin(), about) => {
                let why = "the coordinator has not told yet whether there is Ray".to_owned();
                Some(HookOutcome::Unavailable { after: Some(Duration::from_secs(1)), why })
            }
            Some(false) | None => Some(HookOutcome::Done),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the hooks' file")]
    File(#[from] ebb_config::Error),
    #[error("list the hooks in {}", path.display())]
    List { path: PathBuf, source: io::Error },
}

/// All hooks of this agent, and what each of them runs.
#[derive(Debug, Default)]
pub struct Hooks {
    node: String,
    calls: BTreeMap<String, Call>,
    ray: Option<AboutRay>,
}

impl Hooks {
    /// Those of the file, in its order, and after them those of the folder. Also what rules need to know of them.
    pub fn load(node: &str, file: Option<&Path>, folder: Option<&Path>) -> Result<(Self, Vec<Hook>), Error> {
        let mut all = file.map(ebb_config::read_hooks).transpose()?.unwrap_or_default();
        all.extend(folder.map(dropped_in).transpose()?.unwrap_or_default());
        let calls = all.iter().map(|(hook, call)| (hook.name.clone(), call.clone())).collect();
        let hooks = all.into_iter().map(|(hook, _)| hook).collect();
        Ok((Self { node: node.to_owned(), calls, ray: None }, hooks))
    }

    /// The coordinator is asked about Ray's workers on this node, as the last of all hooks.
    pub fn ask_about_ray(&mut self, coordinator: Service, ray: AboutRay, hooks: &mut Vec<Hook>) {
        hooks.push(node_drain::hook());
        self.calls.insert(node_drain::HOOK.to_owned(), Call::Http(coordinator));
        self.ray = Some(ray);
    }

    /// Dropped before its end, nothing of it is left.
    pub fn run(&self, hook: &str, phase: HookPhase, until: Instant, about: &Intent) -> BoxFuture<'static, HookOutcome> {
        if let Some(ray) = self.ray.as_ref().filter(|_| hook == node_drain::HOOK)
            && let Some(outcome) = ray.outcome(about)
        {
            return Box::pin(std::future::ready(outcome));
        }
        let asked = Asked { node: self.node.clone(), phase, until, about: about.clone() };
        match self.calls.get(hook) {
            Some(Call::Exec(words)) => Box::pin(exec::run(words.clone(), asked)),
            Some(Call::Http(service)) => Box::pin(http::run(service.clone(), asked)),
            None => Box::pin(std::future::ready(HookOutcome::Failed("there is no such hook".into()))),
        }
    }
}

/// What a hook is told.
struct Asked {
    node: String,
    phase: HookPhase,
    until: Instant,
    about: Intent,
}

impl Asked {
    fn facts(&self) -> [(&'static str, String); 8] {
        let Intent { id, reason, deadline, by, .. } = &self.about;
        [
            ("node", self.node.clone()),
            ("phase", self.phase.name().to_owned()),
            ("id", id.clone()),
            ("reason", reason.clone()),
            ("trigger", by.name().to_owned()),
            ("planned", by.is_planned().to_string()),
            ("deadline", deadline.to_string()),
            ("until", self.until.to_string()),
        ]
    }
}

/// `FOLDER/PHASE.d/NAME`: every file that may be executed, in the order of their names, as `run-parts` has it.
fn dropped_in(folder: &Path) -> Result<Vec<(Hook, Call)>, Error> {
    let mut hooks = Vec::new();
    for phase in HookPhase::ALL {
        let path = folder.join(format!("{}.d", phase.name()));
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::List { path, source }),
        };
        let mut files = Vec::new();
        for entry in entries {
            let found = entry.and_then(|entry| Ok((fs::metadata(entry.path())?, entry.path())));
            let (metadata, file) = found.map_err(|source| Error::List { path: path.clone(), source })?;
            if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
                files.push(file);
            }
        }
        files.sort();
        hooks.extend(files.into_iter().map(|file| {
            let name = file.strip_prefix(folder).unwrap_or(&file).display().to_string();
            let call = Call::Exec(vec![file.display().to_string()]);
            let (on_failure, when) = (OnFailure::default(), When::default());
            (Hook { name, phases: [phase].into(), timeout: DEFAULT_TIMEOUT, silence: None, on_failure, when }, call)
        }));
    }
    Ok(hooks)
}

/// The end of what was said, on one line.
fn tail(said: &[u8]) -> String {
    let kept = &said[said.len().saturating_sub(KEPT)..];
    String::from_utf8_lossy(kept).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use ebb_core::intent::{Permits, Trigger};

    use super::*;

    pub(super) fn asked(phase: HookPhase) -> Asked {
        let about = Intent {
            id: "d".into(),
            reason: "reclaimed".into(),
            requested_at: Instant::from_millis(0),
            deadline: Instant::from_millis(60_000),
            evict: true,
            by: Trigger::SpotInterruption,
            awaits_turn: false,
            permits: Permits::default(),
        };
        Asked { node: "node-1".into(), phase, until: Instant::from_millis(30_000), about }
    }

    #[test]
    fn programs_in_the_folders_of_phases_are_hooks_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, mode| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        put("pre-drain.d/20-b", 0o755);
        put("pre-drain.d/10-a", 0o700);
        put("pre-drain.d/README", 0o644);
        put("post-drain.d/c", 0o755);
        put("other.d/d", 0o755);
        let (hooks, known) = Hooks::load("node", None, Some(folder.path())).unwrap();
        let names: Vec<_> =
            known.iter().map(|hook| (hook.name.as_str(), hook.phases.first().unwrap().name())).collect();
        let expected =
            [("pre-drain.d/10-a", "pre-drain"), ("pre-drain.d/20-b", "pre-drain"), ("post-drain.d/c", "post-drain")];
        assert_eq!(names, expected);
        assert_eq!(hooks.calls.len(), 3);
        assert!(Hooks::load("node", None, Some(&folder.path().join("absent"))).unwrap().1.is_empty());
    }

    #[tokio::test]
    async fn the_coordinator_is_asked_about_ray_as_the_last_and_only_where_there_is_ray() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks/ray", listener.local_addr().unwrap());
        let (mut hooks, mut known) = Hooks::load("node-1", None, None).unwrap();
        known.push(Hook { name: "other".into(), ..node_drain::hook() });
        let (has_ray, told) = watch::channel(None);
        let ray = AboutRay { told, clock: Clock::start() };
        hooks.ask_about_ray(Service { url, ..Service::default() }, ray, &mut known);
        assert_eq!(known.last().unwrap().name, node_drain::HOOK);
        let asked = asked(HookPhase::PreTier);
        let run = || hooks.run(node_drain::HOOK, asked.phase, asked.until, &asked.about);
        // The drain was asked for before this agent was started.
        assert!(matches!(run().await, HookOutcome::Unavailable { .. }));
        has_ray.send_replace(Some(false));
        assert_eq!(run().await, HookOutcome::Done);
        has_ray.send_replace(Some(true));
        let answer = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let answer = "HTTP/1.1 202 Accepted\r\nretry-after: 1\r\ncontent-length: 11\r\n\r\na task runs";
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        };
        let (outcome, request) = tokio::join!(run(), answer);
        assert!(request.starts_with("POST /hooks/ray HTTP/1.1\r\n"), "{request}");
        let after = Some(Duration::from_secs(1));
        assert_eq!(outcome, HookOutcome::Later { after, why: "a task runs".into() });
    }

    #[tokio::test]
    async fn the_examples_do_what_they_say() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/hooks"));
        let (mut hooks, known) = Hooks::load("node-1", Some(&folder.join("hooks.yaml")), None).unwrap();
        assert_eq!(known.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["training", "batch", "alarm"]);
        let Some(Call::Exec(words)) = hooks.calls.get_mut("training") else { panic!() };
        let told = tempfile::tempdir().unwrap();
        assert_eq!(words[0], "/etc/ebb/hooks/training");
        *words = vec![folder.join("training").display().to_string(), told.path().display().to_string()];
        let spot = asked(HookPhase::PreDrain).about;
        let planned = Intent { by: Trigger::Person, ..spot.clone() };
        let ask = async |about: &Intent| hooks.run("training", HookPhase::PreDrain, spot.deadline, about).await;
        assert_eq!(ask(&planned).await, HookOutcome::Done);
        fs::write(told.path().join("checkpointing"), "").unwrap();
        assert_eq!(ask(&spot).await, HookOutcome::Later { after: None, why: String::new() });
        fs::write(told.path().join("keep"), "epoch 7 of 8").unwrap();
        assert_eq!(ask(&planned).await, HookOutcome::Veto("epoch 7 of 8".into()));
        assert_eq!(ask(&spot).await, HookOutcome::Later { after: None, why: String::new() });
    }
}
