//! The files of a cgroup, and its name.

use ebb_agent::fuzzing;
use ebb_agent::source::kubepods;

use crate::text;

/// Figures that are read can be read again, however the file ends and whatever stands below them.
pub fn figures(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for (index, figures) in fuzzing::cgroup_figures(text).enumerate() {
        let Ok(figures) = figures else { continue };
        // PSI's lines are of two kinds only, and single numbers stand alone.
        if text.trim_end().lines().count() < 2 || figures.pressure.is_some() {
            continue;
        }
        let longer = format!("{}\nnr_unheard_of 5\n", text.trim_end_matches('\n'));
        assert_eq!(fuzzing::cgroup_figures(&longer).nth(index), Some(Ok(figures)), "file {index}");
    }
}

/// An owner is named by the path that it was found in, and whatever is below its cgroup is its too.
pub fn owner(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Some(owner) = kubepods::owner(text) else { return };
    let (dashes, underscores) = (&owner.pod_uid, owner.pod_uid.replace('-', "_"));
    assert!(text.contains(dashes) || text.replace('-', "_").contains(&underscores), "{owner:?}");
    if let Some(id) = &owner.container_id {
        assert!(text.contains(id.as_str()), "{owner:?}");
        let below = kubepods::owner(&format!("{text}/below")).expect("a cgroup below a container is the container's");
        assert_eq!((&below.pod_uid, &below.container_id), (&owner.pod_uid, &owner.container_id));
        assert!(!below.is_own);
    }
}

/// A process belongs to whom one of its paths belongs.
pub fn process(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some(owner) = kubepods::owner_of_process(text) {
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        assert!(paths.filter_map(kubepods::owner).any(|other| other == owner), "{owner:?}");
    }
}
