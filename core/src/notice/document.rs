//! The documents of EC2's instance metadata that tell of an instance's end, and what each says. Readers of text: how it
//! is fetched is the agent's.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Notice;
use crate::intent::Trigger;
use crate::time::Instant;

/// How long a drain may take after a rebalance recommendation. The recommendation names no time and never ends, so a drain
/// without an end of its own would leave the node without work for ever (aws-node-termination-handler #321). Ours.
const REBALANCE_DRAIN: Duration = Duration::from_secs(30 * 60);

/// How long a lifecycle hook holds an instance from when it is first seen; the document names no time. EC2 Auto Scaling's
/// default for a hook's `HeartbeatTimeout`.
const LIFECYCLE_HOOK: Duration = Duration::from_secs(3600);

/// Of what goes on into ids and sentences. EC2's own are shorter.
const WORD_MAX: usize = 64;
const DESCRIPTION_MAX: usize = 200;

/// A document below `/latest/meta-data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Document {
    InstanceAction,
    RebalanceRecommendation,
    ScheduledMaintenance,
    TargetLifecycleState,
}

/// A text that is not what its document should hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("understand {}: {wrong}", document.path())]
pub struct Malformed {
    pub document: Document,
    pub wrong: String,
}

impl Document {
    pub const ALL: [Self; 4] =
        [Self::InstanceAction, Self::RebalanceRecommendation, Self::ScheduledMaintenance, Self::TargetLifecycleState];

    /// Below `/latest/meta-data/`; also its name in labels and messages.
    pub fn path(self) -> &'static str {
        match self {
            Self::InstanceAction => "spot/instance-action",
            Self::RebalanceRecommendation => "events/recommendations/rebalance",
            Self::ScheduledMaintenance => "events/maintenance/scheduled",
            Self::TargetLifecycleState => "autoscaling/target-lifecycle-state",
        }
    }

    /// What its notices are about.
    pub fn trigger(self) -> Trigger {
        match self {
            Self::InstanceAction => Trigger::SpotInterruption,
            Self::RebalanceRecommendation => Trigger::Rebalance,
            Self::ScheduledMaintenance => Trigger::Maintenance,
            Self::TargetLifecycleState => Trigger::LifecycleHook,
        }
    }

    /// The notices in its text. `now`: for those that name no time of their own.
    pub fn read(self, text: &str, now: Instant) -> Result<Vec<Notice>, Malformed> {
        let notices = match self {
            Self::InstanceAction => instance_action(text, now).map(|notice| vec![notice]),
            Self::RebalanceRecommendation => rebalance_recommendation(text).map(|notice| vec![notice]),
            Self::ScheduledMaintenance => scheduled_maintenance(text),
            Self::TargetLifecycleState => target_lifecycle_state(text, now).map(Vec::from_iter),
        };
        notices.map_err(|wrong| Malformed { document: self, wrong })
    }
}

/// An action that is not known takes the instance away as the known ones do: only hibernation is different, it begins
/// when the notice does.
fn instance_action(text: &str, now: Instant) -> Result<Notice, String> {
    #[derive(Deserialize)]
    struct InstanceAction {
        action: String,
        time: String,
    }
    let InstanceAction { action, time } = json(text)?;
    let action = word("action", action)?;
    let at = rfc3339("time", &time)?;
    let (deadline, when) =
        if action == "hibernate" { (at.min(now), "now".to_owned()) } else { (at, format!("at {at}")) };
    Ok(Notice {
        deadline,
        trigger: Trigger::SpotInterruption,
        id: format!("spot-{action}-{at}"),
        reason: format!("spot interruption: {action} {when}"),
    })
}

fn rebalance_recommendation(text: &str) -> Result<Notice, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Recommendation {
        notice_time: String,
    }
    let Recommendation { notice_time } = json(text)?;
    let at = rfc3339("noticeTime", &notice_time)?;
    Ok(Notice {
        deadline: at + REBALANCE_DRAIN,
        trigger: Trigger::Rebalance,
        id: format!("rebalance-{at}"),
        reason: format!("rebalance recommendation at {at}: an interruption of the spot instance has become likelier"),
    })
}

/// Every code asks for a drain. `instance-stop` and `instance-retirement` end the instance, `instance-reboot` and
/// `system-reboot` what runs on it, `system-maintenance` takes its network or its power away; and AWS lists nothing that
/// an instance would not notice, so a code that is not known yet counts as well. The drain ends with the event: a node
/// that comes back takes pods again.
fn scheduled_maintenance(text: &str) -> Result<Vec<Notice>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Event {
        code: String,
        #[serde(default)]
        description: String,
        event_id: String,
        not_before: String,
        state: String,
    }
    let events: Vec<Event> = json(text)?;
    let mut notices = Vec::new();
    for Event { code, description, event_id, not_before, state } in events {
        match state.as_str() {
            "active" => {}
            "canceled" | "completed" => continue,
            _ => return Err("no `State` of active, canceled and completed".to_owned()),
        }
        let (code, event) = (word("Code", code)?, word("EventId", event_id)?);
        let at = rfc2822("NotBefore", &not_before)?;
        let description: String = description.chars().take(DESCRIPTION_MAX).collect();
        let description = if description.is_empty() { description } else { format!(": {description}") };
        notices.push(Notice {
            deadline: at,
            trigger: Trigger::Maintenance,
            // An event can be put off, and then asks for another drain.
            id: format!("maintenance-{event}-{at}"),
            reason: format!("scheduled maintenance: {code} not before {at}{description}"),
        });
    }
    Ok(notices)
}

/// In a warm pool an instance may be stopped; it comes back as the same node, so that is no end. Neither are `Standby` and
/// `Detached`, in which it goes on running.
fn target_lifecycle_state(text: &str, now: Instant) -> Result<Option<Notice>, String> {
    let state = text.trim();
    match state {
        "Terminated" | "Warmed:Terminated" => {}
        "Detached" | "InService" | "Standby" | "Warmed:Hibernated" | "Warmed:Running" | "Warmed:Stopped" => {
            return Ok(None);
        }
        _ => return Err("no lifecycle state, as `InService` or `Terminated`".to_owned()),
    }
    Ok(Some(Notice {
        deadline: now + LIFECYCLE_HOOK,
        trigger: Trigger::LifecycleHook,
        id: format!("lifecycle-{}", state.replace(':', "-").to_ascii_lowercase()),
        reason: format!("the Auto Scaling group terminates the instance: its target lifecycle state is {state}"),
    }))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string().chars().take(DESCRIPTION_MAX).collect())
}

/// What becomes part of an id.
fn word(field: &str, text: String) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if (1..=WORD_MAX).contains(&text.len()) && text.chars().all(plain) {
        Ok(text)
    } else {
        Err(format!("no word of up to {WORD_MAX} letters, digits, `-`, `.` and `_` in `{field}`"))
    }
}

fn rfc3339(field: &str, text: &str) -> Result<Instant, String> {
    text.parse().map_err(|_| format!("no time as 2026-11-28T03:00:00Z in `{field}`"))
}

/// As `28 Nov 2026 03:00:00 GMT`: without the day of the week, which RFC 2822 leaves free.
fn rfc2822(field: &str, text: &str) -> Result<Instant, String> {
    let zoned = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let millis = zoned.and_then(|timestamp| u64::try_from(timestamp.as_millisecond()).ok());
    millis.map(Instant::from_millis).ok_or_else(|| format!("no time as 28 Nov 2026 03:00:00 GMT in `{field}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        "2026-11-28T13:00:00Z".parse().unwrap()
    }

    /// Deadline, id and reason of each notice.
    fn read(document: Document, text: &str) -> Vec<(String, String, String)> {
        let notices = document.read(text, now()).unwrap();
        assert!(notices.iter().all(|notice| notice.trigger == document.trigger()));
        notices.into_iter().map(|notice| (notice.deadline.to_string(), notice.id, notice.reason)).collect()
    }

    fn one(document: Document, text: &str, deadline: &str, id: &str, reason: &str) {
        assert_eq!(read(document, text), [(deadline.to_owned(), id.to_owned(), reason.to_owned())]);
    }

    #[test]
    fn a_spot_interruption_names_its_time_and_hibernation_is_at_once() {
        one(
            Document::InstanceAction,
            r#"{"action": "terminate", "time": "2026-11-28T13:02:00Z"}"#,
            "2026-11-28T13:02:00.000Z",
            "spot-terminate-2026-11-28T13:02:00.000Z",
            "spot interruption: terminate at 2026-11-28T13:02:00.000Z",
        );
        one(
            Document::InstanceAction,
            r#"{"action": "hibernate", "time": "2026-11-28T13:02:00Z"}"#,
            "2026-11-28T13:00:00.000Z",
            "spot-hibernate-2026-11-28T13:02:00.000Z",
            "spot interruption: hibernate now",
        );
        let other = r#"{"action": "something-new", "time": "2026-11-28T13:02:00Z", "more": []}"#;
        assert_eq!(read(Document::InstanceAction, other)[0].0, "2026-11-28T13:02:00.000Z");
    }

    #[test]
    fn a_rebalance_recommendation_is_given_up_half_an_hour_after_it() {
        one(
            Document::RebalanceRecommendation,
            r#"{"noticeTime":"2026-11-28T12:50:00Z"}"#,
            "2026-11-28T13:20:00.000Z",
            "rebalance-2026-11-28T12:50:00.000Z",
            "rebalance recommendation at 2026-11-28T12:50:00.000Z: an interruption of the spot instance has become likelier",
        );
    }

    fn event(code: &str, state: &str, not_before: &str) -> String {
        format!(
            r#"[{{"NotBefore": "{not_before}", "Code": "{code}", "Description": "scheduled reboot",
                 "EventId": "instance-event-0d5", "NotAfter": "21 Jan 2027 09:17:23 GMT", "State": "{state}"}}]"#
        )
    }

    #[test]
    fn maintenance_is_told_of_while_it_is_active_whatever_its_code() {
        one(
            Document::ScheduledMaintenance,
            &event("system-reboot", "active", "21 Jan 2027 09:00:43 GMT"),
            "2027-01-21T09:00:43.000Z",
            "maintenance-instance-event-0d5-2027-01-21T09:00:43.000Z",
            "scheduled maintenance: system-reboot not before 2027-01-21T09:00:43.000Z: scheduled reboot",
        );
        let codes = ["instance-reboot", "instance-retirement", "instance-stop", "system-maintenance", "new-code"];
        for code in codes {
            let active = event(code, "active", "1 Jan 2027 09:00:43 GMT");
            assert_eq!(read(Document::ScheduledMaintenance, &active).len(), 1, "{code}");
        }
        for state in ["canceled", "completed"] {
            let over = event("system-reboot", state, "21 Jan 2027 09:00:43 GMT");
            assert_eq!(read(Document::ScheduledMaintenance, &over), [], "{state}");
        }
        assert_eq!(read(Document::ScheduledMaintenance, "[]"), []);
    }

    #[test]
    fn an_instance_on_its_way_out_of_its_group_has_an_hour() {
        one(
            Document::TargetLifecycleState,
            "Terminated",
            "2026-11-28T14:00:00.000Z",
            "lifecycle-terminated",
            "the Auto Scaling group terminates the instance: its target lifecycle state is Terminated",
        );
        assert_eq!(read(Document::TargetLifecycleState, "Warmed:Terminated\n")[0].1, "lifecycle-warmed-terminated");
        for state in ["InService", "InService\n", "Standby", "Detached", "Warmed:Stopped", "Warmed:Running"] {
            assert_eq!(read(Document::TargetLifecycleState, state), [], "{state}");
        }
    }

    #[test]
    fn what_is_malformed_is_named_with_what_was_wrong() {
        let check = |document: Document, text: &str, expected: &str| {
            let error = document.read(text, now()).unwrap_err().to_string();
            assert_eq!(error, format!("understand {}: {expected}", document.path()), "{text}");
        };
        let action = Document::InstanceAction;
        check(action, "", "EOF while parsing a value at line 1 column 0");
        check(action, r#"{"action": "stop"}"#, "missing field `time` at line 1 column 18");
        check(action, r#"{"action": "stop", "time": "2 o'clock"}"#, "no time as 2026-11-28T03:00:00Z in `time`");
        let words = "no word of up to 64 letters, digits, `-`, `.` and `_` in";
        check(action, r#"{"action": "a b", "time": "2026-11-28T13:02:00Z"}"#, &format!("{words} `action`"));
        check(
            Document::RebalanceRecommendation,
            r#"{"noticeTime": 1}"#,
            "invalid type: integer `1`, expected a string at line 1 column 16",
        );
        let maintenance = Document::ScheduledMaintenance;
        check(maintenance, "[{", "EOF while parsing an object at line 1 column 2");
        check(maintenance, &event("x y", "active", "21 Jan 2027 09:00:43 GMT"), &format!("{words} `Code`"));
        check(
            maintenance,
            &event("x", "active", "2027-01-21T09:00:43Z"),
            "no time as 28 Nov 2026 03:00:00 GMT in `NotBefore`",
        );
        check(
            maintenance,
            &event("x", "postponed", "21 Jan 2027 09:00:43 GMT"),
            "no `State` of active, canceled and completed",
        );
        let page = "<!DOCTYPE html>";
        check(Document::TargetLifecycleState, page, "no lifecycle state, as `InService` or `Terminated`");
    }
}
