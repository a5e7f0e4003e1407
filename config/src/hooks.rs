//! The file that plugs hooks into a drain.
//!
//! ```yaml
//! hooks:
//!   - name: slurm
//!     phases: [pre-drain]
//!     exec: [/etc/ebb/hooks/slurm, --wait]
//!     timeout: 5m
//!     onFailure: continue
//!     when: planned
//!   - name: registry
//!     phases: [post-drain, on-cancel]
//!     http: https://registry.infra.svc/ebb
//!     caFile: /etc/ebb/hooks/ca.crt
//!     tokenFile: /etc/ebb/hooks/token
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_core::drain::{Hook, HookPhase, OnFailure, When};
use serde::Deserialize;

use crate::check::Check;
use crate::{Error, Problem, Text, from_text};

/// What a hook gets that names no timeout.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a hook runs or calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A program and its arguments.
    Exec(Vec<String>),
    Http(Service),
}

/// A service that is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Where to POST.
    pub url: String,
    /// The certificates that its own must lead to, in PEM; without, those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// What it knows the agent by: sent as a bearer token.
    pub token_file: Option<PathBuf>,
    /// The name that its certificate must carry; without, its URL's host.
    pub server_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hooks: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: Text,
    phases: Vec<HookPhase>,
    #[serde(default)]
    exec: Vec<Text>,
    http: Option<Text>,
    ca_file: Option<Text>,
    token_file: Option<Text>,
    timeout: Option<Text>,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    when: When,
}

/// Reads a file.
pub fn read_hooks(path: &Path) -> Result<Vec<(Hook, Call)>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse_hooks(&text).map_err(|problems| Error::Invalid { path: path.to_owned(), problems })
}

/// Reads a file's text; says all that is wrong with it, in the file's order.
pub fn parse_hooks(text: &str) -> Result<Vec<(Hook, Call)>, Vec<Problem>> {
    let file: File = from_text(text).map_err(|problem| vec![problem])?;
    let mut check = Check::default();
    let mut names = BTreeSet::new();
    let hooks: Vec<_> = file.hooks.iter().filter_map(|entry| hook(entry, &mut names, &mut check)).collect();
    if check.problems.is_empty() {
        return Ok(hooks);
    }
    check.problems.sort();
    Err(check.problems)
}

fn hook<'a>(entry: &'a Entry, names: &mut BTreeSet<&'a str>, check: &mut Check) -> Option<(Hook, Call)> {
    let at = entry.name.referenced;
    let name = entry.name.value.as_str();
    if name.is_empty() || !names.insert(name) {
        check.refuse(at, "expected a name that no other hook has");
    }
    if name.starts_with("ebb.dev/") {
        check.refuse(at, "names that begin with ebb.dev/ are Ebb's own");
    }
    if entry.phases.is_empty() {
        check.refuse(at, format_args!("hook {name} needs `phases`, one or more of {}", phases()));
    }
    let timeout = check.limit(entry.timeout.as_ref(), DEFAULT_TIMEOUT);
    let call = match (entry.exec.first(), &entry.http) {
        (Some(program), None) if Path::new(&program.value).is_absolute() => {
            Some(Call::Exec(entry.exec.iter().map(|word| word.value.clone()).collect()))
        }
        (Some(program), None) => {
            check.refuse(program.referenced, "expected the program's full path: no PATH leads to it");
            None
        }
        (None, Some(url)) => service(url, entry, check).map(Call::Http),
        (Some(_), Some(_)) | (None, None) => {
            check.refuse(at, format_args!("hook {name} needs either `exec` or `http`"));
            None
        }
    };
    let phases = entry.phases.iter().copied().collect();
    let (name, on_failure, when) = (name.to_owned(), entry.on_failure, entry.when);
    Some((Hook { name, phases, timeout, silence: None, on_failure, when }, call?))
}

fn service(url: &Text, entry: &Entry, check: &mut Check) -> Option<Service> {
    if !["http://", "https://"].iter().any(|scheme| url.value.starts_with(scheme)) {
        check.refuse(url.referenced, "expected http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH");
        return None;
    }
    let mut file = |file: &Option<Text>| {
        let file = file.as_ref()?;
        if !url.value.starts_with("https://") {
            check.refuse(file.referenced, "is for https:// only: nobody could trust it over http://");
        } else if !Path::new(&file.value).is_absolute() {
            check.refuse(file.referenced, "expected the file's full path");
        }
        Some(PathBuf::from(&file.value))
    };
    let (url, server_name) = (url.value.clone(), None);
    Some(Service { url, ca_file: file(&entry.ca_file), token_file: file(&entry.token_file), server_name })
}

fn phases() -> String {
    HookPhase::ALL.map(HookPhase::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Listed;

    #[test]
    fn hooks_are_read_with_their_defaults() {
        let text = "
hooks:
  - {name: slurm, phases: [pre-drain], exec: [/hooks/slurm, --wait], timeout: 5m, onFailure: continue, when: planned}
  - {name: registry, phases: [post-drain, on-cancel], http: 'http://registry.infra.svc/ebb'}
  - {name: vault, phases: [pre-drain], http: 'https://vault.infra.svc/ebb', caFile: /ca.crt, tokenFile: /token}
";
        let hooks = parse_hooks(text).unwrap();
        let slurm = Hook {
            name: "slurm".into(),
            phases: [HookPhase::PreDrain].into(),
            timeout: Duration::from_secs(300),
            silence: None,
            on_failure: OnFailure::Continue,
            when: When::Planned,
        };
        let registry = Hook {
            name: "registry".into(),
            phases: [HookPhase::PostDrain, HookPhase::OnCancel].into(),
            timeout: DEFAULT_TIMEOUT,
            silence: None,
            on_failure: OnFailure::Abort,
            when: When::Any,
        };
        let exec = Call::Exec(vec!["/hooks/slurm".into(), "--wait".into()]);
        let http = Call::Http(Service { url: "http://registry.infra.svc/ebb".into(), ..Service::default() });
        let https = Service {
            url: "https://vault.infra.svc/ebb".into(),
            ca_file: Some("/ca.crt".into()),
            token_file: Some("/token".into()),
            server_name: None,
        };
        let vault = Hook { name: "vault".into(), phases: [HookPhase::PreDrain].into(), ..registry.clone() };
        assert_eq!(hooks, [(slurm, exec), (registry, http), (vault, Call::Http(https))]);
    }

    #[test]
    fn all_that_is_wrong_is_said_with_its_place() {
        let text = "hooks:
  - {name: a, phases: [], exec: [/x]}
  - {name: a, phases: [pre-drain], exec: [x]}
  - {name: b, phases: [pre-drain], http: ftp://x}
  - {name: c, phases: [pre-drain]}
  - {name: d, phases: [pre-drain], exec: [/x], timeout: soon}
  - {name: e, phases: [pre-drain], http: 'http://x', tokenFile: /token}
";
        let problems = parse_hooks(text).unwrap_err();
        let listed = Listed { path: Path::new("f"), problems: &problems }.to_string();
        let expected = [
            "f:2:12: hook a needs `phases`, one or more of pre-cordon, pre-drain, pre-tier, post-drain, on-cancel, on-failure",
            "f:3:12: expected a name that no other hook has",
            "f:3:43: expected the program's full path: no PATH leads to it",
            "f:4:42: expected http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH",
            "f:5:12: hook c needs either `exec` or `http`",
            "f:6:57: `soon` is no duration as in 30s, 10m or 1h30m",
            "f:7:65: is for https:// only: nobody could trust it over http://",
        ];
        assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    }
}
