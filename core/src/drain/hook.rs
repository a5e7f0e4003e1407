//! What operators plug into a drain: programs and services that are asked at its phases, and can make it wait, or stop.
//!
//! One at a time, in the order in which they are configured. After a crash of the agent those of the phase it was in are
//! asked again: a hook must bear being asked twice.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pod::Tier;
use super::{Action, Step};
use crate::agenda::Agenda;
use crate::intent::Intent;
use crate::time::{Instant, format_duration};

/// A hook that says "later" and not when is asked again after this.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);

/// When in a drain hooks are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookPhase {
    /// Before anything is changed; of a drain that is not planned, right after the cordon.
    PreCordon,
    /// After the cordon, before the first eviction.
    PreDrain,
    /// Before the first eviction of each tier.
    PreTier,
    /// When the node is empty, before it is said to be.
    PostDrain,
    /// The drain is no longer wanted. Nothing waits for these.
    OnCancel,
    /// The drain was given up. Nothing waits for these.
    OnFailure,
}

impl HookPhase {
    pub const ALL: [Self; 6] =
        [Self::PreCordon, Self::PreDrain, Self::PreTier, Self::PostDrain, Self::OnCancel, Self::OnFailure];
    /// Those that an annotation can make wait.
    pub const BLOCKABLE: [Self; 3] = [Self::PreCordon, Self::PreDrain, Self::PostDrain];

    pub fn name(self) -> &'static str {
        match self {
            Self::PreCordon => "pre-cordon",
            Self::PreDrain => "pre-drain",
            Self::PreTier => "pre-tier",
            Self::PostDrain => "post-drain",
            Self::OnCancel => "on-cancel",
            Self::OnFailure => "on-failure",
        }
    }
}

/// A hook, as far as rules know it: what it runs or calls is the edge's to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    pub name: String,
    pub phases: BTreeSet<HookPhase>,
    /// From when it is first asked, with all the times that it says "later".
    pub timeout: Duration,
    /// It has failed when it has said nothing for so long, not even "later"; `None`: it may until its timeout.
    #[serde(default)]
    pub silence: Option<Duration>,
    pub on_failure: OnFailure,
    pub when: When,
}

/// What a hook's failure means for a planned drain. One that is not planned goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is given up, and what it changed undone.
    #[default]
    Abort,
    Continue,
}

/// Which drains a hook is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    #[default]
    Any,
    Planned,
    Unplanned,
}

/// What a hook answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookOutcome {
    Done,
    Failed(String),
    /// It is to be asked again, after so long if it says so. `why` may be empty.
    Later {
        after: Option<Duration>,
        why: String,
    },
    /// The same, but it was not reached, or cannot say now.
    Unavailable {
        after: Option<Duration>,
        why: String,
    },
    /// It forbids the drain. One that is not planned goes on.
    Veto(String),
}

/// Where in a drain hooks are asked: each once.
pub(super) type Point = (HookPhase, Option<Tier>);

/// The hooks of one drain.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    done: BTreeSet<Point>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    point: Point,
    /// Index into the configured hooks.
    hook: usize,
    began: Instant,
    /// When it last said something, or could first have.
    heard: Instant,
    /// Why it is awaited, as far as it says.
    why: String,
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    Asked,
    AskAt(Instant),
    Ended(HookOutcome),
}

/// How far the hooks of a point are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// One is waited for, in words.
    Waits(String),
    /// The drain must end.
    Stop(Step, String),
}

/// What hooks are asked about.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) hooks: &'a [Hook],
    pub(super) intent: &'a Intent,
    /// When the drain can wait for hooks no longer.
    pub(super) until: Instant,
    /// When what is left must be evicted at the latest.
    pub(super) evict_by: Instant,
}

impl Hooks {
    /// Goes on with the hooks of a point, and says how far they are.
    pub(super) fn advance(
        &mut self,
        agenda: &mut Agenda,
        ask: Ask,
        point: Point,
        actions: &mut Vec<Action>,
    ) -> Verdict {
        if self.done.contains(&point) {
            return Verdict::Done;
        }
        if self.current.as_ref().is_some_and(|current| current.point != point) {
            self.stop(ask.hooks, actions);
        }
        let first = |from: usize| {
            (from..ask.hooks.len()).find(|index| is_asked(&ask.hooks[*index], point.0, ask.intent.is_planned()))
        };
        let mut next = match self.current.take() {
            Some(current) => Some(current),
            None => first(0).map(|hook| Current::new(agenda.now, point, hook)),
        };
        while let Some(mut current) = next {
            let hook = &ask.hooks[current.hook];
            let verdict = current.go_on(agenda, hook, ask, actions);
            if verdict != Verdict::Done {
                self.current = Some(current);
                return verdict;
            }
            next = first(current.hook + 1).map(|hook| Current::new(agenda.now, point, hook));
        }
        self.done.insert(point);
        Verdict::Done
    }

    pub(super) fn ended(&mut self, hooks: &[Hook], name: &str, phase: HookPhase, outcome: HookOutcome) {
        if let Some(current) = &mut self.current
            && current.state == State::Asked
            && (hooks[current.hook].name.as_str(), current.point.0) == (name, phase)
        {
            current.state = State::Ended(outcome);
        }
    }

    /// Ends what is asked, if anything is.
    pub(super) fn stop(&mut self, hooks: &[Hook], actions: &mut Vec<Action>) {
        if let Some(Current { hook, point, state: State::Asked, .. }) = self.current.take() {
            actions.push(Action::StopHook { hook: hooks[hook].name.clone(), phase: point.0 });
        }
    }
}

impl Current {
    fn new(now: Instant, point: Point, hook: usize) -> Self {
        Self { point, hook, began: now, heard: now, why: String::new(), state: State::AskAt(now) }
    }

    fn go_on(&mut self, agenda: &mut Agenda, hook: &Hook, ask: Ask, actions: &mut Vec<Action>) -> Verdict {
        let (phase, planned) = (self.point.0, ask.intent.is_planned());
        self.hear(agenda.now);
        let until = self.until(hook, ask);
        let silent_at = hook.silence.map(|silence| self.heard + silence).filter(|at| *at < until);
        let limit = silent_at.unwrap_or(until);
        if !matches!(self.state, State::Ended(_)) && agenda.due(limit) {
            if self.state == State::Asked {
                actions.push(Action::StopHook { hook: hook.name.clone(), phase });
            }
            let why = match silent_at {
                Some(at) => format!("it has said nothing for {}", format_duration(at.since(self.heard))),
                None => format!("it did not end in {}", format_duration(until.since(self.began))),
            };
            self.state = State::Ended(HookOutcome::Failed(and(&why, &self.why)));
        }
        match &self.state {
            State::AskAt(at) if agenda.due(*at) => {
                actions.push(Action::RunHook {
                    hook: hook.name.clone(),
                    phase,
                    until,
                    about: Box::new(ask.intent.clone()),
                });
                self.state = State::Asked;
                Verdict::Waits(self.awaited(hook))
            }
            State::Asked | State::AskAt(_) => Verdict::Waits(self.awaited(hook)),
            State::Ended(HookOutcome::Veto(why)) if planned => Verdict::Stop(Step::Vetoed, named(hook, why)),
            State::Ended(HookOutcome::Failed(why)) if planned && hook.on_failure == OnFailure::Abort => {
                Verdict::Stop(Step::HookFailed, named(hook, why))
            }
            State::Ended(_) => Verdict::Done,
        }
    }

    /// Takes in that it is to be asked again.
    fn hear(&mut self, now: Instant) {
        let State::Ended(HookOutcome::Later { after, why } | HookOutcome::Unavailable { after, why }) = &self.state
        else {
            return;
        };
        if matches!(self.state, State::Ended(HookOutcome::Later { .. })) {
            self.heard = now;
        }
        self.why.clone_from(why);
        self.state = State::AskAt(now + after.unwrap_or(ASK_AGAIN));
    }

    /// A drain that goes on without it must have time to; one that ends with it loses nothing by waiting.
    fn until(&self, hook: &Hook, ask: Ask) -> Instant {
        let goes_on = hook.on_failure == OnFailure::Continue && self.point.0 != HookPhase::PostDrain;
        (self.began + hook.timeout).min(if goes_on { ask.evict_by } else { ask.until })
    }

    fn awaited(&self, hook: &Hook) -> String {
        and(&format!("hook {} is awaited", hook.name), &self.why)
    }
}

fn and(what: &str, why: &str) -> String {
    if why.is_empty() { what.to_owned() } else { format!("{what}: {why}") }
}

fn is_asked(hook: &Hook, phase: HookPhase, planned: bool) -> bool {
    let when = match hook.when {
        When::Any => true,
        When::Planned => planned,
        When::Unplanned => !planned,
    };
    when && hook.phases.contains(&phase)
}

fn named(hook: &Hook, why: &str) -> String {
    format!("{}: {}", hook.name, if why.is_empty() { "no reason given" } else { why })
}
