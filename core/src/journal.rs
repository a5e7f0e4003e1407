//! What the coordinator was told and what it decided, written down: one JSON object a line. `ebb-coordinator --record`
//! and `ebb simulate --record` write it, `ebb replay` plays it.
//!
//! `{"start": …}` is where a fleet begins, with its policy, and with its state where an earlier file is gone on with;
//! `{"handled": {"now": …, "event": …, "actions": […]}}` is one call of [`Fleet::handle`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fleet::{Action, Event, Failure, Fleet};
use crate::policy::Policy;
use crate::time::Instant;

/// Counts up when a line of before can no longer be read, or means something else.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Line {
    Start(Start),
    Handled(Handled),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    pub format: u32,
    /// Ebb's own.
    pub version: String,
    pub at: Instant,
    pub policy: Policy,
    /// `None`: a new one, which knows nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Fleet>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handled {
    pub now: Instant,
    pub event: Event,
    pub actions: Vec<Action>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "it was written by Ebb {version} in format {format}, and this is Ebb {VERSION}, which reads format {FORMAT}"
    )]
    Format { format: u32, version: String },
    #[error("it is no line of a coordinator's record")]
    Malformed(#[source] serde_json::Error),
    #[error("nothing says yet with what policy the coordinator began: a record begins with a `start` line")]
    NotStarted,
    #[error("the line before it ends in the middle; only a crash leaves such a line, and then a `start` line follows")]
    Torn,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Line {
    /// Where a new coordinator begins.
    pub fn start(at: Instant, policy: &Policy) -> Self {
        Self::begin(at, policy, None)
    }

    /// Where a file begins in the middle of a coordinator's life.
    pub fn resumed(at: Instant, fleet: &Fleet) -> Self {
        Self::begin(at, fleet.policy(), Some(fleet))
    }

    fn begin(at: Instant, policy: &Policy, fleet: Option<&Fleet>) -> Self {
        let (policy, fleet) = (policy.clone(), fleet.cloned());
        Self::Start(Start { format: FORMAT, version: VERSION.to_owned(), at, policy, fleet })
    }

    /// With or without the end of the line.
    pub fn parse(text: &str) -> Result<Self, Error> {
        /// What every format has.
        #[derive(Deserialize)]
        struct Header {
            start: Version,
        }
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            version: String,
        }
        let text = text.trim_end();
        let line = serde_json::from_str(text);
        if !matches!(line, Ok(Self::Handled(_)))
            && let Ok(Header { start: Version { format, version } }) = serde_json::from_str(text)
            && format != FORMAT
        {
            return Err(Error::Format { format, version });
        }
        line.map_err(Error::Malformed)
    }

    /// Without the end of the line.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("events, actions and a fleet always serialise")
    }
}

/// Plays a record, line by line, on the rules as they are now.
///
/// The world goes the way that was recorded: what was decided then is what is done, so that each line is judged by
/// itself and one difference does not make all that follows differ.
#[derive(Debug, Default)]
pub struct Replay {
    /// In place of the recorded ones.
    policy: Option<Policy>,
    fleet: Option<Fleet>,
    torn: bool,
    /// What would have been done for a while now, and was not: it is decided again each time, and said once.
    standing: BTreeSet<String>,
}

/// What a line was.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Played {
    Start(Start),
    Handled(Compared),
    /// It ends in the middle.
    Torn,
}

/// What was decided then, and what is decided now.
#[derive(Debug, PartialEq, Eq)]
pub struct Compared {
    pub now: Instant,
    /// What came in was that this had failed.
    pub failed: Option<(Action, Failure)>,
    pub both: Vec<Action>,
    pub only_then: Vec<Action>,
    pub only_now: Vec<Action>,
}

impl Compared {
    pub fn differs(&self) -> bool {
        !(self.only_then.is_empty() && self.only_now.is_empty())
    }
}

impl Replay {
    /// `policy`: in place of the recorded ones.
    pub fn new(policy: Option<Policy>) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Plays the next line.
    pub fn play(&mut self, text: &str) -> Result<Played, Error> {
        let line = match Line::parse(text) {
            Err(Error::Malformed(error)) if error.is_eof() && !self.torn => {
                self.torn = true;
                return Ok(Played::Torn);
            }
            line => line?,
        };
        match line {
            Line::Start(mut start) => {
                let policy = self.policy.as_ref().unwrap_or(&start.policy).clone();
                self.fleet = Some(match start.fleet.take() {
                    Some(fleet) => fleet.with_policy(policy),
                    None => Fleet::new(policy),
                });
                self.torn = false;
                self.standing.clear();
                Ok(Played::Start(start))
            }
            Line::Handled(_) if self.torn => Err(Error::Torn),
            Line::Handled(Handled { now, event, actions }) => {
                let fleet = self.fleet.as_mut().ok_or(Error::NotStarted)?;
                let failed = match &event {
                    Event::Failed { action, failure } => Some((action.clone(), *failure)),
                    _ => None,
                };
                let decided = fleet.follow(now, event, &actions, !self.standing.is_empty());
                let (both, only_then, only_now) = self.compare(actions, decided);
                Ok(Played::Handled(Compared { now, failed, both, only_then, only_now }))
            }
        }
    }

    /// What was decided both then and now, only then, and only now.
    fn compare(&mut self, then: Vec<Action>, decided: Option<Vec<Action>>) -> (Vec<Action>, Vec<Action>, Vec<Action>) {
        let looked = decided.is_some();
        let decided = decided.unwrap_or_default();
        if then == decided {
            if looked {
                self.standing.clear();
            }
            return (decided, Vec::new(), Vec::new());
        }
        let (both, mut only_now): (Vec<_>, Vec<_>) = decided.iter().cloned().partition(|action| then.contains(action));
        let only_then: Vec<_> = then.iter().filter(|action| !decided.contains(action)).cloned().collect();
        if only_now.is_empty() && only_then.is_empty() {
            // The same in another order.
            return (Vec::new(), then, decided);
        }
        if looked {
            let standing = only_now.iter().map(Action::describe).collect();
            let said = std::mem::replace(&mut self.standing, standing);
            let news = |what| !said.contains(&what) || only_then.iter().any(|then| then.describe() == what);
            only_now.retain(|action| news(action.describe()));
        }
        (both, only_then, only_now)
    }
}

/// A map whose keys are no texts, as a list.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fleet::GroupState;
    use crate::kubernetes::Pod;
    use crate::policy::Group;
    use crate::resources::Resources;
    use crate::storage::{Change, Claim};

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_795_489_200_000 + seconds * 1000)
    }

    fn policy(pending_for: u64) -> Policy {
        let group = Group {
            min: 0,
            max: 3,
            instance_type: "m5.xlarge".into(),
            allocatable: Resources::from_texts([("cpu", "4"), ("pods", "10")]).unwrap(),
            unneeded_for: Duration::from_secs(600),
            ..Group::default()
        };
        let mut policy = Policy { groups: [("a".to_owned(), group)].into(), ..Policy::default() };
        policy.scale_up.pending_for = Duration::from_secs(pending_for);
        policy
    }

    /// A pod waits and gets its node asked for after 30 s; something is heard every ten seconds.
    fn recorded() -> Vec<String> {
        let mut fleet = Fleet::new(policy(30));
        let mut lines = vec![Line::start(at(0), fleet.policy()).to_line()];
        let mut asked = None;
        let mut handle = |now, event: Event| {
            let actions = fleet.handle(now, event.clone());
            lines.push(Line::Handled(Handled { now, event, actions: actions.clone() }).to_line());
            if lines.len() == 6 {
                lines.push(Line::resumed(now, &fleet).to_line());
            }
            actions
        };
        handle(at(0), Event::Leading(true));
        asked = asked.or(handle(at(0), Event::Synced(true)).pop());
        let group = GroupState { name: "a".into(), max: 3, ..GroupState::default() };
        handle(at(1), Event::Groups { asked: asked.unwrap(), groups: vec![group] });
        let claim =
            Claim { namespace: String::new(), name: "data".into(), volume: Some("v".into()), lost: false, class: None };
        handle(at(1), Event::Storage(Change::Claim(claim)));
        let requests = Resources::from_texts([("cpu", "1"), ("pods", "1")]).unwrap();
        let pod = Pod {
            uid: "u".into(),
            claims: vec!["data".into()],
            name: "p".into(),
            requests,
            unschedulable_since: Some(at(2)),
            ..Pod::default()
        };
        handle(at(2), Event::PodApplied(pod));
        for seconds in [12, 22, 32] {
            let actions = handle(at(seconds), Event::Tick);
            for action in actions {
                handle(at(seconds), Event::Done(action));
            }
        }
        handle(at(42), Event::Tick);
        lines
    }

    /// What each line that differs has, then and now.
    fn differences(lines: &[String], policy: Option<Policy>) -> Vec<(u64, Vec<Action>, Vec<Action>)> {
        let mut replay = Replay::new(policy);
        let mut found = Vec::new();
        for line in lines {
            if let Played::Handled(compared) = replay.play(line).unwrap()
                && compared.differs()
            {
                found.push((compared.now.since(at(0)).as_secs(), compared.only_then, compared.only_now));
            }
        }
        found
    }

    #[test]
    fn the_same_rules_decide_the_same_again_also_from_the_middle() {
        let lines = recorded();
        assert!(lines.iter().any(|line| line.contains("setDesired")), "{lines:#?}");
        assert_eq!(differences(&lines, None), []);
        let middle = lines.iter().rposition(|line| line.starts_with(r#"{"start""#)).unwrap();
        assert!(middle > 0);
        assert_eq!(differences(&lines[middle..], None), []);
    }

    #[test]
    fn what_another_policy_decides_is_told_once_and_changes_nothing_that_follows() {
        let found = differences(&recorded(), Some(policy(10)));
        let [(12, then, now)] = &found[..] else { panic!("{found:#?}") };
        assert!(then.is_empty());
        assert!(matches!(now[..], [Action::SetDesired { from: 0, to: 1, .. }, ..]), "{now:?}");
        // Nor would the pod have been told of a node to come.
        let found = differences(&recorded(), Some(policy(300)));
        let [(32, raised, none), (32, told, nothing)] = &found[..] else { panic!("{found:#?}") };
        assert!(matches!(raised[..], [Action::SetDesired { .. }]) && none.is_empty(), "{found:?}");
        assert!(matches!(told[..], [Action::Explain { .. }]) && nothing.is_empty(), "{found:?}");
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_cause() {
        let lines = recorded();
        let check = |lines: &[&str], expected: &str| {
            let mut replay = Replay::new(None);
            let error = lines.iter().find_map(|line| replay.play(line).err()).expect("one of them is wrong");
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(&["{}"], "no line of a coordinator's record");
        check(&["[1]"], "no line of a coordinator's record");
        check(&[&lines[1]], "begins with a `start` line");
        check(&[&lines[0], &lines[1][..20], &lines[2]], "ends in the middle");
        check(&[&lines[0].replacen(r#""format":1"#, r#""format":9"#, 1)], "in format 9, and this is Ebb");
        let of_later = r#"{"start": {"format": 9, "version": "7.0.0", "rules": "others"}}"#;
        check(&[of_later], "Ebb 7.0.0 in format 9");
    }

    #[test]
    fn a_line_that_a_crash_cut_is_passed_over_before_a_start_and_at_the_end() {
        let lines = recorded();
        let mut replay = Replay::new(None);
        for line in [&lines[0], &lines[1], &lines[2][..30], &lines[0], &lines[1], &lines[2][..30]] {
            replay.play(line).unwrap();
        }
    }
}
