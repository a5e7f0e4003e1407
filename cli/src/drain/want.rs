//! What a person's word changes on a Node, and whose word it does not override.

use anyhow::Result;
use ebb_core::intent::{Intent, Trigger, decode};
use ebb_kubernetes::intent::{self, Change};
use kube::Client;

use super::whose;
use crate::text::moment;

/// Who we are, in `managedFields`.
const MANAGER: &str = "ebb-cli";

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{what} of node {node}. {advice}")]
    Refused { node: String, what: String, advice: String },
    #[error(transparent)]
    Write(#[from] intent::Error),
}

pub(super) async fn drain(client: &Client, node: (&str, &str), intent: &Intent, replace: bool) -> Result<()> {
    let decide = |standing: Option<&str>| place(node.0, standing.map(Stands::read).as_ref(), intent, replace);
    Ok(intent::change(client, MANAGER, node, decide).await?)
}

pub(super) async fn cancel(client: &Client, node: (&str, &str), replace: bool) -> Result<()> {
    let decide = |standing: Option<&str>| take_back(node.0, standing.map(Stands::read).as_ref(), replace);
    Ok(intent::change(client, MANAGER, node, decide).await?)
}

fn place(node: &str, standing: Option<&Stands>, wanted: &Intent, replace: bool) -> Result<Option<Change>, Error> {
    match standing {
        Some(Stands::Intent(standing)) if standing.id == wanted.id => Ok(None),
        Some(other) if !replace => Err(Error::Refused {
            node: node.to_owned(),
            what: format!("{} already asked for the drain", other.described()),
            advice: format!(
                "Wait for its end (`kubectl describe node {node}` shows it), or put yours in its place with --replace"
            ),
        }),
        _ => Ok(Some(Change::Put(wanted.clone()))),
    }
}

fn take_back(node: &str, standing: Option<&Stands>, replace: bool) -> Result<Option<Change>, Error> {
    match standing {
        None => Ok(None),
        Some(other) if !other.is_a_persons() && !replace => Err(Error::Refused {
            node: node.to_owned(),
            what: format!("{} asked for the drain", other.described()),
            advice:
                "It is not a person's to take back; do it all the same with --cancel --replace, but who wants it may \
                     ask again"
                    .to_owned(),
        }),
        Some(_) => Ok(Some(Change::Remove)),
    }
}

/// What stands in the annotation.
pub(super) enum Stands {
    Intent(Intent),
    /// A person's own, which the node's agent has yet to take up.
    Words(String),
}

impl Stands {
    pub(super) fn read(text: &str) -> Self {
        decode(text).map_or_else(|| Self::Words(text.to_owned()), Self::Intent)
    }

    fn is_a_persons(&self) -> bool {
        match self {
            Self::Intent(intent) => intent.by == Trigger::Person,
            Self::Words(_) => true,
        }
    }

    /// As in `the coordinator (d-1, since 2026-11-28T12:00:00Z: measured idle)`.
    pub(super) fn described(&self) -> String {
        match self {
            Self::Intent(Intent { id, reason, requested_at, by, .. }) => {
                format!("{} ({id}, since {}: {reason})", whose(*by), moment(*requested_at))
            }
            Self::Words(words) => format!("somebody ({words})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::intent::Permits;
    use ebb_core::time::Instant;

    use super::*;

    fn intent(id: &str, by: Trigger) -> Intent {
        let at = Instant::from_millis(1_795_867_200_000);
        let reason = "disk".to_owned();
        Intent {
            id: id.into(),
            reason,
            requested_at: at,
            deadline: at,
            evict: true,
            by,
            awaits_turn: false,
            permits: Permits::default(),
        }
    }

    fn told(result: Result<Option<Change>, Error>) -> String {
        match result {
            Ok(None) => "nothing".into(),
            Ok(Some(Change::Put(intent))) => format!("put {}", intent.id),
            Ok(Some(Change::Remove)) => "remove".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn another_s_drain_is_replaced_only_on_demand() {
        let check = |standing: Option<Intent>, replace, expected: &str| {
            let found =
                told(place("n", standing.map(Stands::Intent).as_ref(), &intent("mine", Trigger::Person), replace));
            assert!(found.starts_with(expected), "{found}");
        };
        check(None, false, "put mine");
        check(Some(intent("mine", Trigger::Person)), false, "nothing");
        check(
            Some(intent("d-1", Trigger::Coordinator)),
            false,
            "the coordinator (d-1, since 2026-11-28T12:00:00Z: disk) already asked for the drain of node n. Wait for",
        );
        check(Some(intent("other", Trigger::Person)), false, "a person (other, since");
        check(Some(intent("d-1", Trigger::Coordinator)), true, "put mine");
        let words = Stands::read("new kernel");
        let refused = told(place("n", Some(&words), &intent("mine", Trigger::Person), false));
        assert!(refused.starts_with("somebody (new kernel) already asked for the drain of node n."), "{refused}");
    }

    #[test]
    fn only_a_person_s_drain_is_taken_back_without_further_words() {
        let check = |standing: Option<Intent>, replace, expected: &str| {
            let found = told(take_back("n", standing.map(Stands::Intent).as_ref(), replace));
            assert!(found.starts_with(expected), "{found}");
        };
        check(None, false, "nothing");
        check(Some(intent("other", Trigger::Person)), false, "remove");
        assert_eq!(told(take_back("n", Some(&Stands::read("new kernel")), false)), "remove");
        check(
            Some(intent("d-1", Trigger::SpotInterruption)),
            false,
            "the node's agent, for a spot interruption (d-1, since 2026-11-28T12:00:00Z: disk) asked for the drain of \
             node n. It is not a person's",
        );
        check(Some(intent("d-1", Trigger::Coordinator)), true, "remove");
    }
}
