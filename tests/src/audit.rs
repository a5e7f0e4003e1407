//! What a lab's API server was asked for, and by whom, from its own audit log.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::program::root;

/// The audit log of a lab that is started with [`Audit::apiserver_args`]. Removed on drop.
pub struct Audit {
    dir: PathBuf,
}

/// A request that was answered; of a watch, one that has begun.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who was authenticated, whomever it impersonates.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// `nodes`, `pods`; empty for what is no resource (`/api`).
    pub resource: String,
    pub dry_run: bool,
    pub code: u16,
    /// Whether a PodDisruptionBudget is the cause of the refusal.
    pub by_budget: bool,
}

/// How many requests there were of each kind. A 429 is counted under its verb as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub gets: usize,
    pub lists: usize,
    pub watches: usize,
    /// All that change something, and those that would if they were no dry run.
    pub writes: usize,
    /// Those of the writes that are dry runs.
    pub dry_runs: usize,
    /// 429 because of a PodDisruptionBudget.
    pub closed_budgets: usize,
    /// 429 for any other reason: the API server has too much to do.
    pub throttled: usize,
}

impl Audit {
    /// Of these users only: the log of all is long.
    pub fn new(users: &[&str]) -> Self {
        static AUDITS: AtomicU32 = AtomicU32::new(0);
        let number = AUDITS.fetch_add(1, Ordering::Relaxed);
        let dir = root().join(format!("target/labs/audit-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the target folder takes a folder");
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "users": users}, {"level": "None"}],
        });
        std::fs::write(dir.join("policy.json"), policy.to_string()).expect("the folder takes a file");
        Self { dir }
    }

    /// As for [`crate::LabOptions::apiserver_args`].
    pub fn apiserver_args(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.dir.join("policy.json").display()),
            format!("--audit-log-path={}", self.log().display()),
            // MiB, then a new file is begun: later than any lab lives.
            "--audit-log-maxsize=4096".into(),
        ]
    }

    fn log(&self) -> PathBuf {
        self.dir.join("audit.jsonl")
    }

    /// Now, for [`Audit::since`].
    pub fn mark(&self) -> u64 {
        std::fs::metadata(self.log()).map_or(0, |file| file.len())
    }

    /// The requests since then. A request is logged before its answer is sent.
    pub fn since(&self, mark: u64) -> Vec<Request> {
        let mut text = String::new();
        if let Ok(mut log) = std::fs::File::open(self.log()) {
            log.seek(SeekFrom::Start(mark)).expect("a file can be read from anywhere");
            log.read_to_string(&mut text).expect("the audit log is text");
        }
        // The last line may be half written.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.filter_map(|line| request(&serde_json::from_str(line).expect("each line is an event"))).collect()
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        // No panic: this drop may be part of one.
        let _left_behind = std::fs::remove_dir_all(&self.dir);
    }
}

fn request(event: &Value) -> Option<Request> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let verb = text(&event["verb"]);
    // A watch is logged when it begins, and again when it ends.
    let stage = if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
    let causes = event["responseStatus"]["details"]["causes"].as_array();
    (event["stage"] == stage).then(|| Request {
        user: text(&event["user"]["username"]),
        resource: text(&event["objectRef"]["resource"]),
        dry_run: text(&event["requestURI"]).contains("dryRun=All"),
        code: event["responseStatus"]["code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or_default(),
        by_budget: causes.is_some_and(|causes| causes.iter().any(|cause| cause["reason"] == "DisruptionBudget")),
        verb,
    })
}

impl Tally {
    /// Those of one user.
    pub fn of(requests: &[Request], user: &str) -> Self {
        let mut tally = Self::default();
        for request in requests.iter().filter(|request| request.user == user) {
            match request.verb.as_str() {
                "get" => tally.gets += 1,
                "list" => tally.lists += 1,
                "watch" => tally.watches += 1,
                _ => {
                    tally.writes += 1;
                    tally.dry_runs += usize::from(request.dry_run);
                }
            }
            if request.code == 429 {
                let count = if request.by_budget { &mut tally.closed_budgets } else { &mut tally.throttled };
                *count += 1;
            }
        }
        tally
    }

    pub fn all(&self) -> usize {
        self.gets + self.lists + self.watches + self.writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "system:serviceaccount:ebb:ebb-agent";

    fn event(stage: &str, verb: &str, uri: &str, status: Value) -> Option<Request> {
        request(&json!({
            "stage": stage,
            "verb": verb,
            "requestURI": uri,
            "user": {"username": USER},
            "impersonatedUser": {"username": "system:node:n"},
            "objectRef": {"resource": "pods"},
            "responseStatus": status,
        }))
    }

    #[test]
    fn each_request_is_counted_once_and_a_429_by_its_cause() {
        let budget = json!({"code": 429, "details": {"causes": [{"reason": "DisruptionBudget"}]}});
        let requests: Vec<_> = [
            event("ResponseStarted", "watch", "/api/v1/nodes?watch=true", json!({"code": 200})),
            event("ResponseStarted", "watch", "/api/v1/pods?watch=true", json!({"code": 200})),
            event("ResponseComplete", "watch", "/api/v1/pods?watch=true", json!({"code": 200})),
            event("ResponseComplete", "list", "/api/v1/pods", json!({"code": 200})),
            event("ResponseComplete", "create", "/api/v1/pods/p/eviction?dryRun=All", json!({"code": 201})),
            event("ResponseComplete", "create", "/api/v1/pods/p/eviction?", budget.clone()),
            event("ResponseComplete", "create", "/api/v1/pods/q/eviction?", budget),
            event("ResponseComplete", "create", "/api/v1/pods/p/eviction?", json!({"code": 429})),
        ]
        .into_iter()
        .flatten()
        .collect();
        let expected = Tally { gets: 0, lists: 1, watches: 2, writes: 4, dry_runs: 1, closed_budgets: 2, throttled: 1 };
        assert_eq!(Tally::of(&requests, USER), expected);
        assert_eq!(Tally::of(&requests, USER).all(), 7);
        assert_eq!(Tally::of(&requests, "admin"), Tally::default());
    }
}
