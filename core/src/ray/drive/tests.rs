use super::*;

const NOW: Instant = Instant::from_millis(1_000_000);
const DRIVE: Drive = Drive { queue_depth: 0, idle_timeout: Duration::from_secs(60), upscaling_speed: None };
const NOTHING: Queue = Queue { depth: 0, missing: 0, at_all_times: false, could_take: false };

fn ago(seconds: u64) -> Instant {
    NOW.before(Duration::from_secs(seconds))
}

fn idle(pod: &'static str, seconds: u64) -> Worker<'static> {
    Worker { pod, state: WorkerState::Idle { node: pod, since: ago(seconds) } }
}

fn busy(pod: &'static str) -> Worker<'static> {
    Worker { pod, state: WorkerState::Busy }
}

fn unplaced(pod: &'static str, seconds: u64) -> Worker<'static> {
    Worker { pod, state: WorkerState::Unplaced { since: Some(ago(seconds)) } }
}

fn spec(replicas: u32) -> GroupSpec {
    GroupSpec { name: "cpu".into(), replicas, max: 100, hosts: 1, ..GroupSpec::default() }
}

fn standing<'a>(spec: &'a GroupSpec, workers: &[Worker<'a>]) -> Standing<'a> {
    Standing { spec, min: 0, max: 100, workers: workers.to_vec(), leaving: BTreeSet::new() }
}

fn by_queue<'a>(standing: &Standing<'a>, drive: Drive, queue: Queue) -> (Step<'a>, Option<Instant>) {
    let mut agenda = Agenda::new(NOW);
    let step = standing.by_queue(&mut agenda, &drive, queue, |_| false);
    (step, agenda.next)
}

fn names<'a>(workers: &[Worker<'a>]) -> Vec<&'a str> {
    workers.iter().map(|worker| worker.pod).collect()
}

#[test]
fn so_many_workers_come_as_are_missing_and_no_more_than_speed_and_maximum_let() {
    let spec = spec(2);
    let two = [busy("a"), busy("b")];
    let check = |upscaling_speed, depth: u64, missing, expected: u32| {
        let queue = Queue { depth, missing, could_take: depth > 0, ..NOTHING };
        let drive = Drive { queue_depth: 3, upscaling_speed, ..DRIVE };
        assert_eq!(
            by_queue(&standing(&spec, &two), drive, queue).0.replicas,
            expected,
            "{missing} {upscaling_speed:?}"
        );
    };
    check(None, 3, 1, 2);
    check(None, 4, 1, 3);
    check(None, 400, 200, 100);
    // Five may always be on their way; more by share of the two that have joined.
    check(Some(1000), 400, 200, 7);
    check(Some(3500), 400, 200, 9);
    check(Some(1000), 4, 4, 6);
}

#[test]
fn what_must_be_there_at_all_times_needs_no_queue() {
    let spec = spec(0);
    let queue = Queue { missing: 3, at_all_times: true, ..NOTHING };
    assert_eq!(by_queue(&standing(&spec, &[]), DRIVE, queue).0.replicas, 3);
}

#[test]
fn who_has_been_idle_long_enough_goes_the_longest_first_and_the_next_is_looked_at_in_time() {
    let spec = spec(4);
    let workers = [idle("a", 10), idle("b", 100), busy("c"), idle("d", 300)];
    let (step, next) = by_queue(&standing(&spec, &workers), DRIVE, NOTHING);
    assert_eq!((step.replicas, names(&step.drain)), (4, vec!["d", "b"]), "not before their head agrees");
    assert_eq!(next, Some(NOW + Duration::from_secs(50)));
    let least = Standing { min: 3, ..standing(&spec, &workers) };
    assert_eq!(names(&by_queue(&least, DRIVE, NOTHING).0.drain), ["d"], "the minimum stays");
    let could_take = Queue { depth: 1, could_take: true, ..NOTHING };
    assert_eq!(names(&by_queue(&standing(&spec, &workers), DRIVE, could_take).0.drain), Vec::<&str>::new());
    let mut agenda = Agenda::new(NOW);
    let step = standing(&spec, &workers).by_queue(&mut agenda, &DRIVE, NOTHING, |without| without.len() > 1);
    assert_eq!(names(&step.drain), ["d"], "who would be made anew stays");
}

#[test]
fn a_pod_without_a_node_goes_at_once_when_nothing_waits_for_it_any_more() {
    let spec = spec(2);
    let workers = [unplaced("a", 61), unplaced("b", 5)];
    let (step, _) = by_queue(&standing(&spec, &workers), DRIVE, NOTHING);
    assert_eq!((step.replicas, step.delete, step.drain.len()), (1, ["a"].into(), 0));
}

#[test]
fn replicas_fall_by_one_for_each_that_is_newly_named() {
    let named = GroupSpec { workers_to_delete: ["a".to_owned()].into(), ..spec(3) };
    let leaving = Standing { leaving: ["a", "b"].into(), ..standing(&named, &[busy("c"), busy("d")]) };
    let (step, _) = by_queue(&leaving, DRIVE, NOTHING);
    assert_eq!((step.replicas, &step.delete), (2, &["a", "b"].into()));
    assert!(step.changes(&named));
    let gone = Standing { leaving: BTreeSet::new(), ..leaving };
    let (step, _) = by_queue(&gone, DRIVE, NOTHING);
    assert_eq!((step.replicas, step.delete.len()), (3, 0), "who is gone was counted before");
}

#[test]
fn a_number_takes_who_is_free_now_and_waits_for_the_others() {
    let spec = spec(4);
    let workers = [idle("a", 1), busy("b"), unplaced("c", 0), Worker { pod: "d", state: WorkerState::Starting }];
    let step = standing(&spec, &workers).by_number(1);
    assert_eq!((step.replicas, step.delete, names(&step.drain)), (3, ["c"].into(), vec!["a"]));
    let step = standing(&spec, &workers).by_number(3);
    assert_eq!((step.replicas, step.delete.len(), step.drain.len()), (3, 1, 0));
    assert_eq!(standing(&spec, &workers).by_number(9).replicas, 9);
    assert_eq!(Standing { max: 5, ..standing(&spec, &workers) }.by_number(9).replicas, 5);
}

#[test]
fn nobody_goes_in_the_place_of_those_that_are_not_made_yet() {
    let nine = spec(9);
    let step = standing(&nine, &[unplaced("a", 0), idle("b", 1)]).by_number(4);
    assert_eq!((step.replicas, step.delete.len(), step.drain.len()), (9, 0, 0));
    // Above its maximum none is made: nobody has to be named for these.
    let spec = GroupSpec { max: 5, ..nine };
    let workers = ["a", "b", "c", "d", "e"].map(|pod| unplaced(pod, 0));
    let step = standing(&spec, &workers).by_number(4);
    assert_eq!((step.replicas, step.delete.len()), (4, 1));
}

#[test]
fn a_group_is_let_alone_with_a_reason() {
    let group = |change: fn(&mut RayCluster)| {
        let mut cluster = RayCluster { groups: vec![spec(0)], ..RayCluster::default() };
        change(&mut cluster);
        cluster.group("cpu")
    };
    assert_eq!(group(|_| {}), Ok(0));
    assert_eq!(group(|cluster| cluster.in_tree_autoscaling = true), Err(Refusal::InTreeAutoscaling));
    assert_eq!(group(|cluster| cluster.suspended = true), Err(Refusal::Suspended));
    assert_eq!(group(|cluster| cluster.groups[0].suspended = true), Err(Refusal::Suspended));
    assert_eq!(group(|cluster| cluster.groups[0].hosts = 2), Err(Refusal::MultiHost));
    assert_eq!(group(|cluster| cluster.groups.clear()), Err(Refusal::NoGroup));
}
