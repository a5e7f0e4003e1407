use proptest::prelude::*;

use super::*;

const WINDOW: Duration = Duration::from_secs(15);

fn at(seconds: u64) -> Instant {
    Instant::from_millis(1_000_000_000 + seconds * 1000)
}

/// Ready for long, with a fresh sample in percent of its requests.
fn pod(now: Instant, cpu: u64, memory: u64) -> Pod {
    let long_ago = Some(now.before(Duration::from_secs(3600)));
    Pod {
        running: true,
        started: long_ago,
        ready_since: long_ago,
        terminating: false,
        cpu_request: 1000,
        memory_request: 1000,
        usage: Some(Usage { cpu: cpu * 10, memory: memory * 10, at: now, window: WINDOW }),
    }
}

fn pending() -> Pod {
    Pod { cpu_request: 1000, memory_request: 1000, ..Pod::default() }
}

fn silent(now: Instant) -> Pod {
    Pod { usage: None, ..pod(now, 0, 0) }
}

fn just_ready(now: Instant, cpu: u64) -> Pod {
    let ready = Some(now.before(Duration::from_secs(10)));
    Pod { started: ready, ready_since: ready, ..pod(now, cpu, 0) }
}

/// Without windows and policies: what the metrics alone ask for.
fn asked(pods: &[Pod], demand: Option<u32>) -> u32 {
    let mut spec = Spec::flow(1, 100);
    (spec.up, spec.down) = (free(), free());
    spec.demand = demand.is_some();
    let replicas = u32::try_from(pods.len()).unwrap();
    Hpa::new(spec).sync(at(0), &Observed { replicas, pods: pods.to_vec(), demand }).desired
}

fn free() -> Behavior {
    Behavior { stabilization: Duration::ZERO, policies: vec![Policy::Percent(10_000, Duration::from_secs(60))] }
}

#[test]
fn replicas_follow_the_ratio_of_use_to_target() {
    let check = |cpu: &[u64], memory: u64, expected| {
        let pods: Vec<_> = cpu.iter().map(|cpu| pod(at(0), *cpu, memory)).collect();
        assert_eq!(asked(&pods, None), expected, "cpu {cpu:?} memory {memory}");
    };
    check(&[70, 70], 80, 2);
    check(&[140, 140], 0, 4);
    check(&[100, 100], 0, 3);
    // Within a tenth of the target nothing changes, beyond it something does.
    check(&[77; 10], 0, 10);
    check(&[78; 10], 0, 12);
    check(&[63; 10], 0, 10);
    check(&[62; 10], 0, 9);
    // The highest of the metrics wins.
    check(&[35, 35], 160, 4);
    check(&[35; 4], 20, 2);
    check(&[0; 4], 0, 1);
}

#[test]
fn what_is_not_known_speaks_against_the_change() {
    let now = at(0);
    let check = |pods: &[Pod], expected, why| assert_eq!(asked(pods, None), expected, "{why}");
    check(&[pod(now, 140, 0), silent(now)], 2, "a silent pod counts as idle on the way up: 70 %");
    check(&[pod(now, 210, 0), silent(now)], 3, "105 % of two");
    check(&[pod(now, 0, 0), silent(now), silent(now), silent(now)], 4, "and as all busy on the way down");
    check(&[pod(now, 140, 0), pending()], 2, "a pending pod counts as idle on the way up");
    check(&[pod(now, 7, 0), pod(now, 7, 0), pending()], 1, "and not at all on the way down");
    check(&[pod(now, 140, 0), just_ready(now, 500)], 2, "a pod that only just became ready counts as idle");
    let leaving = Pod { terminating: true, ..pod(now, 900, 900) };
    check(&[pod(now, 70, 80), leaving], 2, "a pod that is leaving does not count");
}

#[test]
fn a_missing_metric_forbids_a_reduction_only() {
    let sync = |pods: &[Pod], demand| {
        let mut hpa = Hpa::new(Spec { up: free(), down: free(), ..Spec::flow(1, 100).with_demand() });
        hpa.sync(at(0), &Observed { replicas: 4, pods: pods.to_vec(), demand }).desired
    };
    assert_eq!(sync(&[pending(), pending(), pending(), pending()], Some(2)), 4, "no pod has metrics");
    assert_eq!(sync(&[pending(), pending(), pending(), pending()], Some(9)), 9);
    assert_eq!(sync(&[pod(at(0), 1, 1); 4], None), 4, "the demand is not known");
    assert_eq!(sync(&[pod(at(0), 1, 1); 4], Some(2)), 2);
}

#[test]
fn demand_within_the_tolerance_changes_nothing() {
    assert_eq!(asked(&[pod(at(0), 0, 0); 20], Some(21)), 20);
    assert_eq!(asked(&[pod(at(0), 0, 0); 20], Some(23)), 23);
}

/// Steps through rounds 15 s apart, in which every pod is ready and demand is given; the replicas after each.
fn replicas(spec: Spec, start: u32, demand: &[u32]) -> Vec<u32> {
    let mut hpa = Hpa::new(spec);
    let mut replicas = start;
    let rounds = demand.iter().enumerate().map(|(round, demand)| {
        let now = at(round as u64 * 15);
        let pods = vec![pod(now, 0, 0); replicas as usize];
        replicas = hpa.sync(now, &Observed { replicas, pods, demand: Some(*demand) }).desired;
        replicas
    });
    rounds.collect()
}

#[test]
fn on_the_way_up_it_waits_for_the_window_then_doubles_every_period() {
    let demand = [40; 12];
    let expected = [2, 2, 4, 4, 8, 8, 16, 16, 32, 32, 40, 40];
    assert_eq!(replicas(Spec::flow(2, 40).with_demand(), 2, &demand), expected);
    // From one, two pods more are more than a doubling.
    assert_eq!(replicas(Spec::flow(0, 40).with_demand(), 1, &[40; 4]), [1, 1, 3, 3]);
}

#[test]
fn on_the_way_down_it_waits_for_the_window_then_halves_every_minute() {
    let demand = [[16; 1].as_slice(), &[0; 34]].concat();
    let after = replicas(Spec::flow(2, 40).with_demand(), 16, &demand);
    // The last recommendation of 16 is 300 s old in round 20.
    let changes: Vec<_> = (1..after.len()).filter(|&round| after[round] != after[round - 1]).collect();
    assert_eq!(changes, [20, 24, 28]);
    assert_eq!([after[20], after[24], after[28]], [8, 4, 2]);
}

#[test]
fn at_zero_only_demand_starts_it_again() {
    assert_eq!(replicas(Spec::flow(0, 40).with_demand(), 0, &[0, 0, 0, 0, 5, 5, 5, 5]), [0, 0, 0, 0, 0, 2, 2, 4]);
    let mut hpa = Hpa::new(Spec::flow(0, 40));
    assert_eq!(hpa.sync(at(0), &Observed::default()).desired, 0);
}

proptest! {
    #[test]
    fn replicas_stay_in_bounds_and_change_no_faster_than_allowed(
        start in 1u32..30,
        demand in prop::collection::vec(0u32..60, 1..80),
    ) {
        let after = replicas(Spec::flow(1, 30).with_demand(), start, &demand);
        for (round, now) in after.iter().enumerate() {
            prop_assert!((1..=30).contains(now));
            // Two rounds are one period of 30 s, four are one of 60 s.
            let past = |rounds: usize| match round.checked_sub(rounds) {
                Some(past) => after[past],
                None => start,
            };
            let lowest = past(2).min(past(1));
            prop_assert!(*now <= (lowest * 2).max(lowest + 2).max(past(1)), "round {round} of {after:?}");
            let highest = (1..=4).map(past).max().unwrap();
            prop_assert!(*now >= (highest / 2).min(past(1)), "round {round} of {after:?}");
        }
    }

    #[test]
    fn a_reduction_never_goes_below_what_the_window_asked_for(demand in prop::collection::vec(1u32..30, 30..60)) {
        // Asked for from the start, so that the way up does not matter.
        let after = replicas(Spec::flow(1, 30).with_demand(), 30, &demand);
        for (round, now) in after.iter().enumerate() {
            let reduced = round > 0 && *now < after[round - 1];
            let window = demand[round.saturating_sub(19)..=round].iter().max().unwrap();
            // Where demand is near the pods there are, the recommendation is these pods.
            prop_assert!(!reduced || f64::from(*now) * 1.12 >= f64::from(*window), "round {round}: {after:?}");
        }
    }
}

#[test]
fn the_last_replica_never_goes_while_it_uses_anything() {
    let mut hpa = Hpa::new(Spec { up: free(), down: free(), ..Spec::flow(0, 10).with_demand() });
    let observed = Observed { replicas: 1, pods: vec![pod(at(0), 1, 1)], demand: Some(0) };
    assert_eq!(hpa.sync(at(0), &observed).desired, 1);
}
