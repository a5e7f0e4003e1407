//! Which intent follows from notices and from what stands on the node: a table, and what holds of all.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

fn notice(trigger: Trigger, deadline: u64) -> Notice {
    Notice { deadline: at(deadline), trigger, id: format!("{trigger:?}-{deadline}"), reason: "because".to_owned() }
}

/// All triggers known, with these notices.
fn known(notices: &[Notice]) -> Notices {
    let mut all = Notices::default();
    for trigger in Document::ALL.map(Document::trigger).into_iter().chain([Trigger::GpuRecovery]) {
        let of = notices.iter().filter(|notice| notice.trigger == trigger).cloned().collect();
        all.learn(trigger, Some(of));
    }
    all
}

fn intent(by: Trigger, deadline: u64) -> Intent {
    notice(by, deadline).intent(at(0), Permits::default())
}

/// The wish at the thousandth second, in a word: `keep`, `remove` or the new intent's id.
fn wish(notices: &Notices, policy: &Policy, standing: Option<&Intent>) -> String {
    match notices.intent(at(1000), policy, standing) {
        Wish::Keep => "keep".to_owned(),
        Wish::Set(intent) => intent.id,
        Wish::Remove => "remove".to_owned(),
    }
}

#[test]
fn the_more_urgent_takes_the_place_and_what_is_gone_goes() {
    use Trigger::{Coordinator, LifecycleHook, Maintenance, Person, Rebalance, SpotInterruption};
    let policy = Policy { rebalance: true, ..Policy::default() };
    let check = |standing: Option<(Trigger, u64)>, notices: &[(Trigger, u64)], expected: &str| {
        let notices: Vec<_> = notices.iter().map(|(trigger, deadline)| notice(*trigger, *deadline)).collect();
        let intent = standing.map(|(by, deadline)| intent(by, deadline));
        assert_eq!(wish(&known(&notices), &policy, intent.as_ref()), expected, "{standing:?} {notices:?}");
    };
    check(None, &[], "keep");
    check(None, &[(SpotInterruption, 1120)], "SpotInterruption-1120");
    // Unplanned before planned, and then by the time that is left.
    let all = [(Rebalance, 1010), (Maintenance, 1005), (LifecycleHook, 4600), (SpotInterruption, 1120)];
    check(None, &all, "SpotInterruption-1120");
    check(None, &all[..3], "LifecycleHook-4600");
    check(None, &all[..2], "Maintenance-1005");
    // The same again.
    check(Some((SpotInterruption, 1120)), &all, "keep");
    // Sooner than what stands, or not.
    check(Some((Maintenance, 1500)), &[(Maintenance, 1500), (Rebalance, 1400)], "Rebalance-1400");
    check(Some((Maintenance, 1500)), &[(Maintenance, 1500), (Rebalance, 1600)], "keep");
    check(Some((SpotInterruption, 1120)), &[(SpotInterruption, 1120), (Maintenance, 1010)], "keep");
    // Cancelled; put off.
    check(Some((Maintenance, 1500)), &[], "remove");
    check(Some((Maintenance, 1500)), &[(Maintenance, 2500)], "Maintenance-2500");
    check(Some((Maintenance, 1500)), &[(Maintenance, 1000 + 9 * HOUR)], "remove");
    check(Some((SpotInterruption, 1120)), &[(Rebalance, 1400)], "Rebalance-1400");
    // What was given up leaves the node to what is still to come.
    check(Some((Rebalance, 900)), &[(Rebalance, 900)], "keep");
    check(Some((Rebalance, 900)), &[(Rebalance, 900), (Maintenance, 1500)], "Maintenance-1500");
    // Somebody else's wish.
    for by in [Person, Coordinator] {
        check(Some((by, 9000)), &[], "keep");
        check(Some((by, 9000)), &[(Maintenance, 1010), (Rebalance, 1020)], "keep");
        check(Some((by, 900)), &[(Maintenance, 1010)], "keep");
        check(Some((by, 1010)), &[(SpotInterruption, 1120)], "SpotInterruption-1120");
        check(Some((by, 1010)), &[(LifecycleHook, 4600)], "LifecycleHook-4600");
    }
    check(Some((LifecycleHook, 9000)), &[(LifecycleHook, 4600)], "keep");
    check(Some((LifecycleHook, 9000)), &[(SpotInterruption, 1120)], "SpotInterruption-1120");
    check(Some((LifecycleHook, 9000)), &[], "keep");
    // Nobody tells of it, so nothing says that it is over.
    check(Some((Trigger::Shutdown, 900)), &[], "keep");
}

#[test]
fn what_is_not_known_is_not_gone() {
    let mut notices = known(&[]);
    let standing = intent(Trigger::SpotInterruption, 1120);
    assert_eq!(wish(&notices, &Policy::default(), Some(&standing)), "remove");
    assert!(notices.learn(Trigger::SpotInterruption, None));
    assert_eq!(wish(&notices, &Policy::default(), Some(&standing)), "keep");
}

#[test]
fn which_notices_are_acted_on_is_policy() {
    let (none, default) = (Policy::default(), Policy::default());
    let none = Policy { spot_interruption: false, maintenance: false, lifecycle_hook: false, ..none };
    let check = |trigger, policy: &Policy, expected: &str| {
        assert_eq!(wish(&known(&[notice(trigger, 1500)]), policy, None), expected, "{trigger:?}");
    };
    check(Trigger::SpotInterruption, &default, "SpotInterruption-1500");
    check(Trigger::LifecycleHook, &default, "LifecycleHook-1500");
    check(Trigger::Maintenance, &default, "Maintenance-1500");
    check(Trigger::Rebalance, &default, "keep");
    check(Trigger::GpuRecovery, &default, "keep");
    check(Trigger::SpotInterruption, &none, "keep");
    check(Trigger::LifecycleHook, &none, "keep");
    check(Trigger::Maintenance, &none, "keep");
    check(Trigger::Rebalance, &Policy { rebalance: true, ..none.clone() }, "Rebalance-1500");
    check(Trigger::GpuRecovery, &Policy { gpu_recovery: true, ..none }, "GpuRecovery-1500");
}

#[test]
fn maintenance_begins_within_its_lead_and_says_when_to_ask_again() {
    let policy = Policy::default();
    let notices = known(&[notice(Trigger::Maintenance, 1000 + 2 * HOUR)]);
    let begins = at(1000 + HOUR);
    assert_eq!(notices.intent(at(1000), &policy, None), Wish::Keep);
    assert_eq!(notices.next_wakeup(at(1000), &policy, None), Some(begins));
    assert_eq!(notices.intent(begins.before(Duration::from_millis(1)), &policy, None), Wish::Keep);
    assert!(matches!(notices.intent(begins, &policy, None), Wish::Set(_)));
    assert_eq!(notices.next_wakeup(begins, &policy, None), Some(at(1000 + 2 * HOUR)));
    // Its time has come: what was not drained by then stays.
    assert_eq!(notices.intent(at(1000 + 2 * HOUR), &policy, None), Wish::Keep);
}

#[test]
fn a_notice_without_a_time_keeps_the_deadline_it_was_first_seen_with() {
    let read = |seconds| Document::TargetLifecycleState.read("Terminated", at(seconds)).unwrap();
    let mut notices = Notices::default();
    assert!(notices.learn(Trigger::LifecycleHook, Some(read(0))));
    assert!(!notices.learn(Trigger::LifecycleHook, Some(read(5))), "the same said again is nothing new");
    let known = notices.of(Trigger::LifecycleHook).unwrap();
    assert_eq!(known.first().unwrap().deadline, at(HOUR));
    assert!(notices.learn(Trigger::LifecycleHook, Some(Vec::new())));
    assert!(notices.learn(Trigger::LifecycleHook, None));
    assert!(!notices.learn(Trigger::LifecycleHook, None));
}

#[test]
fn the_same_notice_is_nothing_new_whatever_its_deadline_was_before() {
    let text = r#"{"action": "hibernate", "time": "2126-11-28T13:02:00Z"}"#;
    let read = Document::InstanceAction.read(text, at(1000)).unwrap();
    // Seen by an agent whose clock was ahead.
    let standing = Intent { deadline: at(2000), ..read[0].intent(at(2000), Permits::default()) };
    assert_eq!(wish(&known(&read), &Policy::default(), Some(&standing)), "keep");
}

#[test]
fn what_is_given_up_is_asked_about_when_it_is() {
    let mut notices = known(&[notice(Trigger::Maintenance, 1120)]);
    notices.learn(Trigger::Rebalance, None);
    let (policy, standing) = (Policy::default(), intent(Trigger::Rebalance, 1060));
    assert_eq!(wish(&notices, &policy, Some(&standing)), "keep");
    assert_eq!(notices.next_wakeup(at(1000), &policy, Some(&standing)), Some(at(1060)));
    assert!(matches!(notices.intent(at(1060), &policy, Some(&standing)), Wish::Set(_)));
}

#[test]
fn what_was_allowed_to_be_lost_stays_allowed() {
    let permits = Permits { force: true, ..Permits::default() };
    let standing = Intent { permits, ..intent(Trigger::Person, 9000) };
    let notices = known(&[notice(Trigger::SpotInterruption, 1120)]);
    let Wish::Set(intent) = notices.intent(at(1000), &Policy::default(), Some(&standing)) else {
        panic!("no escalation")
    };
    assert_eq!(intent.permits, permits);
    assert_eq!((intent.by, intent.requested_at, intent.evict), (Trigger::SpotInterruption, at(1000), true));
}

fn any_trigger() -> impl Strategy<Value = Trigger> {
    prop::sample::select(vec![
        Trigger::Coordinator,
        Trigger::GpuRecovery,
        Trigger::LifecycleHook,
        Trigger::Maintenance,
        Trigger::Person,
        Trigger::Rebalance,
        Trigger::Shutdown,
        Trigger::SpotInterruption,
    ])
}

/// Few moments, so that they meet.
fn any_deadline() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![990, 1000, 1001, 1060, 1120, 3000, 4600, 5000, 100_000])
}

prop_compose! {
    fn any_notices()(
        listed in prop::collection::vec((any_trigger(), any_deadline()), 0..6),
        unknown in prop::collection::vec(any_trigger(), 0..3),
    ) -> Notices {
        let mut notices = known(&[]);
        for (trigger, deadline) in listed {
            let mut of: Vec<_> = notices.of(trigger).into_iter().flatten().cloned().collect();
            of.push(notice(trigger, deadline));
            notices.learn(trigger, Some(of));
        }
        for trigger in unknown {
            notices.learn(trigger, None);
        }
        notices
    }
}

prop_compose! {
    fn any_policy()(
        gpu_recovery: bool, lifecycle_hook: bool, maintenance: bool, rebalance: bool, shutdown: bool,
        spot_interruption: bool, lead in 0..5000_u64,
    ) -> Policy {
        let maintenance_lead = Duration::from_secs(lead);
        Policy { gpu_recovery, lifecycle_hook, maintenance, maintenance_lead, rebalance, shutdown, spot_interruption }
    }
}

fn any_standing() -> impl Strategy<Value = Option<Intent>> {
    prop::option::of((any_trigger(), any_deadline()).prop_map(|(by, deadline)| intent(by, deadline)))
}

/// What stands after a wish.
fn applied(wish: Wish, standing: Option<Intent>) -> Option<Intent> {
    match wish {
        Wish::Keep => standing,
        Wish::Set(intent) => Some(intent),
        Wish::Remove => None,
    }
}

proptest! {
    #[test]
    fn a_wish_once_granted_asks_for_nothing_more(
        notices in any_notices(), policy in any_policy(), standing in any_standing(),
    ) {
        let now = at(1000);
        let standing = applied(notices.intent(now, &policy, standing.as_ref()), standing);
        prop_assert_eq!(notices.intent(now, &policy, standing.as_ref()), Wish::Keep);
    }

    #[test]
    fn what_others_wish_is_never_removed_and_gives_way_only_to_what_is_not_planned(
        notices in any_notices(), policy in any_policy(), standing in any_standing(),
    ) {
        let wish = notices.intent(at(1000), &policy, standing.as_ref());
        if let Some(standing) = standing.filter(|standing| !standing.by.is_the_agents()) {
            match wish {
                Wish::Keep => {}
                Wish::Set(intent) => prop_assert!(!intent.is_planned() && intent.by != standing.by),
                Wish::Remove => prop_assert!(false, "removed {standing:?}"),
            }
        }
    }

    #[test]
    fn what_is_set_is_a_known_notice_that_policy_acts_on_and_nothing_due_is_more_urgent(
        notices in any_notices(), policy in any_policy(), standing in any_standing(),
    ) {
        let wish = notices.intent(at(1000), &policy, standing.as_ref());
        if let Wish::Set(intent) = &wish {
            let of = notices.of(intent.by).into_iter().flatten();
            prop_assert!(of.filter(|notice| notice.id == intent.id).count() == 1);
            prop_assert!(policy.acts_on(intent.by));
            prop_assert!(!intent.is_planned() || at(1000) < intent.deadline, "begins what is over");
        }
        let unplanned = notices.known.values().flatten();
        let unplanned = unplanned.filter(|notice| !notice.trigger.is_planned() && policy.acts_on(notice.trigger));
        if unplanned.count() > 0 {
            let standing = applied(wish, standing);
            prop_assert!(standing.is_some_and(|intent| !intent.is_planned()), "an end that is sure was not heeded");
        }
    }

    #[test]
    fn nothing_follows_from_what_is_not_known(policy in any_policy(), standing in any_standing()) {
        prop_assert_eq!(Notices::default().intent(at(1000), &policy, standing.as_ref()), Wish::Keep);
    }

    #[test]
    fn nothing_changes_before_the_next_wakeup(
        notices in any_notices(), policy in any_policy(), standing in any_standing(), wait in 0..200_000_u64,
    ) {
        let (now, later) = (at(1000), at(1000 + wait));
        if notices.next_wakeup(now, &policy, standing.as_ref()).is_none_or(|wakeup| later < wakeup) {
            let mut later = notices.intent(later, &policy, standing.as_ref());
            if let Wish::Set(intent) = &mut later {
                intent.requested_at = now;
            }
            prop_assert_eq!(notices.intent(now, &policy, standing.as_ref()), later);
        }
    }
}
