//! Gives up the rights that only the start needs. What needs which right is known where it is opened or attached.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("ask for this thread's capabilities")]
    Ask(#[source] Errno),
    #[error("give up capabilities; a seccomp filter may be in the way of capset or prctl")]
    GiveUp(#[source] Errno),
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ask(_) => "ask",
            Self::GiveUp(_) => "give-up",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub had: CapabilitySet,
    pub kept: CapabilitySet,
}

/// Leaves this thread, and all that it starts, with as little as `works` works with: no capability, or `CAP_BPF`, or
/// what there was. Capabilities belong to threads, so this comes before the first other one. Nor does it regain any by
/// starting a program (`PR_SET_NO_NEW_PRIVS`).
pub fn give_up(works: impl Fn() -> bool) -> Result<Rights, Error> {
    set_no_new_privs(true).map_err(Error::GiveUp)?;
    let had = capabilities(None).map_err(Error::Ask)?.permitted;
    // Linux before 5.19 asks for it at every call, once `kernel.unprivileged_bpf_disabled` is set.
    let enough = [CapabilitySet::empty(), had & CapabilitySet::BPF, had];
    for kept in enough {
        // While the permitted ones stay, the effective ones can be raised again.
        set(had, kept)?;
        if works() {
            set(kept, kept)?;
            return Ok(Rights { had, kept });
        }
    }
    // Not for want of rights; then they are of no use, either.
    set(CapabilitySet::empty(), CapabilitySet::empty())?;
    Ok(Rights { had, kept: CapabilitySet::empty() })
}

/// `CAP_BPF CAP_PERFMON`; `none` of none.
pub fn names(set: CapabilitySet) -> String {
    match set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect::<Vec<_>>() {
        names if names.is_empty() => "none".into(),
        names => names.join(" "),
    }
}

fn set(permitted: CapabilitySet, effective: CapabilitySet) -> Result<(), Error> {
    // The ambient set goes with the inheritable one.
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(Error::GiveUp)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// In a thread of its own: what it gives up, it does not get back.
    fn in_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(run).join()).expect("the thread ends well")
    }

    fn effective() -> CapabilitySet {
        capabilities(None).expect("one may always ask").effective
    }

    #[test]
    fn what_works_without_rights_is_left_without() {
        let (rights, left) = in_thread(|| (give_up(|| true).expect("one may always give up"), effective()));
        assert_eq!((rights.kept, left), (CapabilitySet::empty(), CapabilitySet::empty()));
    }

    #[test]
    fn only_the_right_that_is_needed_is_kept() {
        if !effective().contains(CapabilitySet::BPF) {
            return eprintln!("not run: without CAP_BPF there is nothing to keep");
        }
        let needs_bpf = || effective().contains(CapabilitySet::BPF);
        let rights = in_thread(move || give_up(needs_bpf).expect("one may always give up"));
        assert_eq!(rights.kept, CapabilitySet::BPF);
    }

    #[test]
    fn what_never_works_is_left_without_rights() {
        let asked = in_thread(|| {
            let asked = Cell::new(0);
            let rights = give_up(|| {
                asked.set(asked.get() + 1);
                false
            });
            assert_eq!(rights.expect("one may always give up").kept, CapabilitySet::empty());
            assert_eq!(effective(), CapabilitySet::empty());
            asked.get()
        });
        assert_eq!(asked, 3);
    }

    #[test]
    fn capabilities_are_named_as_everywhere() {
        assert_eq!(names(CapabilitySet::BPF | CapabilitySet::PERFMON), "CAP_PERFMON CAP_BPF");
        assert_eq!(names(CapabilitySet::empty()), "none");
    }
}
