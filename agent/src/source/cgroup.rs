//! The tree of cgroups: which there are, whose they are, what they used, and the id by which eBPF knows them.
//! Version 2 at the root of the mount, version 1 beside it (hybrid), or version 1 alone. How many are followed is
//! bounded; those nearest to the root come first.

mod figures;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant as Monotonic;
use std::{fs, io};

use super::Error;
use super::ebpf::CgroupSchedule;
use super::kubepods::{self, Owner};
use super::polled::read_once;

pub(crate) use figures::FigureFile;
pub use figures::{Figures, Memory, Throttling};

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// From the root of the tree, which is `/`.
    pub path: Arc<str>,
    /// The inode of its folder in the version 2 hierarchy.
    pub id: Option<u64>,
    /// `None`: of no pod.
    pub owner: Option<Arc<Owner>>,
    /// `None`: it was there when this was first looked at, so nobody knows since when.
    pub appeared: Option<Monotonic>,
    pub figures: Figures,
    /// By eBPF, which the tree knows nothing of: whoever reads both joins them. `None`: not counted, or it never ran.
    pub schedule: Option<CgroupSchedule>,
    /// Of CUDA kernels, likewise. `None`: not counted.
    pub cuda_launches: Option<u64>,
}

/// All of them at one moment.
#[derive(Debug)]
pub struct Cgroups {
    pub at: Monotonic,
    /// Ordered by path.
    pub all: Vec<Cgroup>,
    /// Whether none was left out, by the bound or for want of rights.
    pub complete: bool,
    /// What could not be read, but for what went away in between.
    pub errors: Vec<Error>,
}

#[derive(Debug)]
pub struct CgroupTree {
    root: PathBuf,
    max: usize,
    /// Empty until the mounts were found.
    hierarchies: Vec<Hierarchy>,
    entries: BTreeMap<Arc<str>, Entry>,
    round: u64,
}

/// One mounted tree and what is read from it.
#[derive(Debug)]
struct Hierarchy {
    root: PathBuf,
    /// Whether its folders' inodes are the ids.
    identifies: bool,
    files: &'static [FigureFile],
    /// Read of pods' own cgroups besides.
    of_pods: &'static [FigureFile],
}

#[derive(Debug, Default)]
struct Entry {
    id: Option<u64>,
    owner: Option<Arc<Owner>>,
    appeared: Option<Monotonic>,
    /// In the order of the hierarchies that have it.
    folders: Vec<Folder>,
    /// The last round in which it was there.
    seen: u64,
}

/// A cgroup's folder in one hierarchy. It is held open, which is half the way to each of its files; the files are not,
/// since the kernel keeps a page of memory for each open file that was read, in our name.
#[derive(Debug)]
struct Folder {
    hierarchy: usize,
    /// Tells it from one that was made after it under the same name.
    inode: u64,
    file: File,
    path: PathBuf,
    figures: Vec<FigureFile>,
    seen: u64,
}

impl Cgroups {
    /// Whether a cgroup that is not among them is gone: all were read, from the kernel's own root. A container's view
    /// may begin at its own cgroup, and the host's cgroups are none the less there.
    pub fn are_the_hosts(&self) -> bool {
        // The inode of the root of the version 2 hierarchy: the first that the kernel makes.
        const ROOT: u64 = 1;
        self.complete && self.all.first().is_some_and(|root| root.id == Some(ROOT))
    }
}

impl CgroupTree {
    pub fn new(root: &Path, max: usize) -> Self {
        Self { root: root.to_owned(), max, hierarchies: Vec::new(), entries: BTreeMap::new(), round: 0 }
    }

    pub fn read(&mut self, now: Monotonic, buffer: &mut Vec<u8>) -> Result<Cgroups, Error> {
        if self.hierarchies.is_empty() {
            self.hierarchies = hierarchies(&self.root);
        }
        if self.hierarchies.is_empty() {
            return Err(Error::NoCgroups { root: self.root.clone() });
        }
        self.round += 1;
        let round = Round { number: self.round, appeared: (self.round > 1).then_some(now), max: self.max };
        let mut complete = true;
        for number in 0..self.hierarchies.len() {
            complete &= walk((number, &self.hierarchies[number]), &mut self.entries, &round)?;
        }
        self.entries.retain(|_, entry| {
            entry.folders.retain(|folder| folder.seen == self.round);
            entry.seen == self.round
        });
        let mut errors = Vec::new();
        let all = self.entries.iter().map(|(path, entry)| entry.read(path, buffer, &mut errors)).collect();
        Ok(Cgroups { at: now, all, complete, errors })
    }
}

impl Entry {
    fn folder(&mut self, hierarchy: usize, inode: u64) -> Option<&mut Folder> {
        self.folders.iter_mut().find(|folder| folder.hierarchy == hierarchy && folder.inode == inode)
    }

    /// Whether it is a pod's own cgroup.
    fn is_pods(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is_own && owner.container_id.is_none())
    }

    fn read(&self, path: &Arc<str>, buffer: &mut Vec<u8>, errors: &mut Vec<Error>) -> Cgroup {
        let mut figures = Figures::default();
        for folder in &self.folders {
            for kind in &folder.figures {
                let read =
                    read_once(&folder.file, &folder.path, kind.name(), buffer, |text| kind.add(text, &mut figures));
                if let Err(error) = read
                    && !error.is_gone()
                {
                    errors.push(error);
                }
            }
        }
        Cgroup {
            path: path.clone(),
            id: self.id,
            owner: self.owner.clone(),
            appeared: self.appeared,
            figures,
            schedule: None,
            cuda_launches: None,
        }
    }
}

fn hierarchies(root: &Path) -> Vec<Hierarchy> {
    let is_v2 = |folder: &Path| folder.join("cgroup.controllers").is_file();
    if is_v2(root) {
        let (files, of_pods) = (FigureFile::V2, FigureFile::V2_PODS);
        return vec![Hierarchy { root: root.to_owned(), identifies: true, files, of_pods }];
    }
    let mut found = Vec::new();
    let mut add = |folder: &str, marker: &str, identifies, files| {
        let folder = root.join(folder);
        if folder.join(marker).is_file() {
            found.push(Hierarchy { root: folder, identifies, files, of_pods: &[] });
        }
    };
    add("unified", "cgroup.controllers", true, &[]);
    add("cpuacct", "cpuacct.usage", false, &[FigureFile::CpuacctUsageV1]);
    add("cpu", "cpu.shares", false, &[FigureFile::CpuStatV1]);
    let memory = &[FigureFile::MemoryUsageV1, FigureFile::MemoryStatV1, FigureFile::MemoryOomControlV1];
    add("memory", "memory.usage_in_bytes", false, memory);
    found
}

/// One reading of the whole tree.
struct Round {
    number: u64,
    /// When whatever is new in it appeared.
    appeared: Option<Monotonic>,
    max: usize,
}

/// Marks what is there now; says whether none was left out. Breadth first, so that what is left out lies deep.
fn walk(
    (number, hierarchy): (usize, &Hierarchy),
    entries: &mut BTreeMap<Arc<str>, Entry>,
    round: &Round,
) -> Result<bool, Error> {
    let mut complete = true;
    let root = fs::metadata(&hierarchy.root).map_err(|source| Error::Read { path: hierarchy.root.clone(), source })?;
    let mut queue = VecDeque::from([(String::from("/"), root.ino())]);
    while let Some((path, inode)) = queue.pop_front() {
        let is_new = !entries.contains_key(path.as_str());
        if is_new && entries.len() >= round.max {
            complete = false;
            continue;
        }
        let known = entries.get_mut(path.as_str()).and_then(|entry| entry.folder(number, inode));
        let opened = match known {
            Some(_) => None,
            None => match Folder::open(number, hierarchy, &path, inode) {
                Ok(folder) => Some(folder),
                Err(error) => {
                    // Gone since its parent was listed; or there, and not to be seen.
                    complete &= error.kind() == io::ErrorKind::NotFound;
                    continue;
                }
            },
        };
        let entry = entries.entry(path.as_str().into()).or_insert_with(|| Entry {
            owner: kubepods::owner(&path).map(Arc::new),
            appeared: round.appeared,
            ..Entry::default()
        });
        entry.seen = round.number;
        if hierarchy.identifies {
            entry.id = Some(inode);
        }
        let of_pods = if entry.is_pods() { hierarchy.of_pods } else { &[] };
        if let Some(mut folder) = opened {
            folder.figures = hierarchy.files.iter().chain(of_pods).copied().collect();
            entry.folders.retain(|former| former.hierarchy != number);
            entry.folders.push(folder);
        }
        let Some(folder) = entry.folder(number, inode) else { continue };
        folder.seen = round.number;
        // A folder has a link from each folder in it: two links mean that there is none, which saves listing it.
        if folder.file.metadata().is_ok_and(|metadata| metadata.nlink() == 2) {
            continue;
        }
        match fs::read_dir(&folder.path) {
            Ok(children) => {
                let folders = children.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()));
                let parent = path.trim_end_matches('/');
                let name = |child: &fs::DirEntry| format!("{parent}/{}", child.file_name().to_string_lossy());
                queue.extend(folders.map(|child| (name(&child), child.ino())));
            }
            Err(error) => complete &= error.kind() == io::ErrorKind::NotFound,
        }
    }
    Ok(complete)
}

impl Folder {
    fn open(number: usize, hierarchy: &Hierarchy, path: &str, inode: u64) -> io::Result<Self> {
        let path = hierarchy.root.join(&path[1..]);
        let file = File::open(&path)?;
        Ok(Self { hierarchy: number, inode, file, path, figures: Vec::new(), seen: 0 })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const POD: &str = "kubepods.slice/kubepods-pod8f5d2c4e_1b7a_4f0e_9c3d_5a6b7c8d9e0f.slice";

    /// Writes a tree of files in a temporary folder.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), files);
        dir
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn read(tree: &mut CgroupTree) -> Cgroups {
        tree.read(Monotonic::now(), &mut Vec::new()).unwrap()
    }

    fn paths(cgroups: &Cgroups) -> Vec<&str> {
        cgroups.all.iter().map(|cgroup| &*cgroup.path).collect()
    }

    #[test]
    fn version_2_is_read_from_one_tree() {
        let stalled = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let dir = tree(&[
            ("cgroup.controllers", "cpu memory\n"),
            ("cpu.stat", "usage_usec 5\nuser_usec 3\n"),
            (&format!("{POD}/cpu.stat"), "usage_usec 2\n"),
            (&format!("{POD}/cpu.pressure"), stalled),
            (&format!("{POD}/memory.current"), "100\n"),
            (&format!("{POD}/memory.stat"), "anon 1\ninactive_file 30\n"),
            ("system.slice/cpu.stat", "usage_usec 1\n"),
            ("system.slice/cpu.pressure", stalled),
        ]);
        let found = read(&mut CgroupTree::new(dir.path(), 10));
        let [root, _, pod, system] = &found.all[..] else { panic!("{:?}", paths(&found)) };
        assert_eq!((&*root.path, root.figures.cpu), ("/", Some(Duration::from_micros(5))));
        assert_eq!(pod.figures.memory.working_set(), Some(70));
        assert!(pod.owner.as_ref().unwrap().is_own);
        assert_eq!(pod.figures.pressure.unwrap().cpu.some, Some(Duration::from_micros(7)));
        assert_eq!(pod.id, Some(fs::metadata(dir.path().join(POD)).unwrap().ino()));
        assert_eq!((&*system.path, system.figures.pressure), ("/system.slice", None), "of pods only");
        assert!(found.errors.is_empty() && found.complete);
    }

    #[test]
    fn the_trees_of_version_1_are_joined_by_path() {
        let dir = tree(&[
            ("unified/cgroup.controllers", "\n"),
            ("unified/pod/cgroup.procs", ""),
            ("cpuacct/cpuacct.usage", "9\n"),
            ("cpuacct/pod/cpuacct.usage", "7\n"),
            ("cpu/cpu.shares", "1024\n"),
            ("cpu/pod/cpu.stat", "nr_periods 4\nnr_throttled 1\nthrottled_time 8\n"),
            ("memory/memory.usage_in_bytes", "1000\n"),
            ("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 400\n"),
        ]);
        let found = read(&mut CgroupTree::new(dir.path(), 10));
        let [root, pod] = &found.all[..] else { panic!("{:?}", paths(&found)) };
        assert_eq!((root.figures.cpu, root.figures.memory.working_set()), (Some(Duration::from_nanos(9)), Some(600)));
        assert_eq!((pod.figures.cpu, pod.figures.memory.total), (Some(Duration::from_nanos(7)), None));
        assert_eq!(pod.figures.throttling.unwrap().periods, 4);
        assert!(found.all.iter().all(|cgroup| cgroup.id.is_some()));
    }

    #[test]
    fn a_cgroup_that_went_away_is_no_error_and_a_new_one_is_known_to_be_new() {
        let dir =
            tree(&[("cgroup.controllers", ""), ("a/cpu.stat", "usage_usec 1\n"), ("b/cpu.stat", "usage_usec 2\n")]);
        let mut cgroups = CgroupTree::new(dir.path(), 10);
        assert_eq!(paths(&read(&mut cgroups)), ["/", "/a", "/b"]);
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        write(dir.path(), &[("c/cpu.stat", "usage_usec 3\n")]);
        let after = read(&mut cgroups);
        assert_eq!(paths(&after), ["/", "/b", "/c"]);
        assert!(after.errors.is_empty());
        let appeared: Vec<_> = after.all.iter().map(|cgroup| cgroup.appeared).collect();
        assert_eq!(appeared, [None, None, Some(after.at)]);
        assert_eq!(read(&mut cgroups).all[2].appeared, Some(after.at), "and stays as old as it is");
    }

    #[test]
    fn the_bound_leaves_out_what_lies_deep() {
        let dir = tree(&[("cgroup.controllers", ""), ("a/deep/x", ""), ("b/x", "")]);
        let found = read(&mut CgroupTree::new(dir.path(), 3));
        assert_eq!(paths(&found), ["/", "/a", "/b"]);
        assert!(!found.complete);
    }

    #[test]
    fn a_broken_file_is_counted_and_the_others_are_read() {
        let dir =
            tree(&[("cgroup.controllers", ""), ("a/cpu.stat", "usage_usec many\n"), ("b/cpu.stat", "usage_usec 2\n")]);
        let found = read(&mut CgroupTree::new(dir.path(), 10));
        assert_eq!(found.errors.iter().map(Error::kind).collect::<Vec<_>>(), ["malformed"]);
        assert_eq!(found.all[1].figures.cpu, None);
        assert_eq!(found.all[2].figures.cpu, Some(Duration::from_micros(2)));
    }

    #[test]
    fn a_folder_without_cgroups_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = CgroupTree::new(dir.path(), 10).read(Monotonic::now(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), "missing");
    }
}
