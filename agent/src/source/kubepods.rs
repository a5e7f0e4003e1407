//! Whose cgroup it is: the names that the kubelet and the container runtimes give to the cgroups of pods and containers.
//! Pure: a path goes in, and no cgroup is looked at. What a pod is called is not in its cgroup's name.

/// The pod that a cgroup belongs to, and the container if it is one's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// As in `metadata.uid`. Of a static pod it is the hash of its manifest, which the API server's mirror of the pod
    /// has in the annotation `kubernetes.io/config.hash`.
    pub pod_uid: String,
    pub qos: Qos,
    /// `None`: the pod's own cgroup, or one of its runtime's helpers.
    pub container_id: Option<String>,
    /// Whether it is the pod's or the container's own cgroup, whose figures include those of all below it.
    pub is_own: bool,
}

/// `status.qosClass`: the kubelet has a cgroup for each, but for pods of the first it is the root of all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// `None`: no pod's. The names are those of the kubelet's drivers `systemd` (`kubepods-burstable-pod<uid>.slice`,
/// `-` in the UID written `_`; `pkg/kubelet/cm/cgroup_manager_linux.go`) and `cgroupfs` (`kubepods/burstable/pod<uid>`),
/// below any root.
pub fn owner(path: &str) -> Option<Owner> {
    let mut parent = "";
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    while let Some(part) = parts.next() {
        if let Some((qos, pod_uid)) = pod(parent, part) {
            // containerd with the kubelet's names but not systemd's scopes: `<slice>:cri-containerd:<id>`.
            let joined = part.split_once(':').and_then(|(_, rest)| container(rest.rsplit(':').next()?));
            let (container_id, is_own) = match (joined, parts.next()) {
                (Some(id), next) => (Some(id), next.is_none()),
                (None, None) => (None, true),
                (None, Some(next)) => {
                    let id = container(next);
                    let is_own = id.is_some() && parts.next().is_none();
                    (id, is_own)
                }
            };
            return Some(Owner { pod_uid, qos, container_id: container_id.map(str::to_owned), is_own });
        }
        parent = part;
    }
    None
}

/// The owner of a process, from `/proc/<pid>/cgroup`: a line `ID:CONTROLLERS:PATH` for each hierarchy (`cgroups(7)`).
pub fn owner_of_process(text: &str) -> Option<Owner> {
    text.lines().find_map(|line| owner(line.splitn(3, ':').nth(2)?))
}

/// The class and UID if this is the name of a pod's cgroup.
fn pod(parent: &str, part: &str) -> Option<(Qos, String)> {
    let part = part.split_once(':').map_or(part, |(slice, _)| slice);
    if let Some(slice) = part.strip_suffix(".slice") {
        let (before, uid) = slice.rsplit_once("-pod")?;
        let qos = match before.rsplit('-').next()? {
            "burstable" => Qos::Burstable,
            "besteffort" => Qos::BestEffort,
            "kubepods" => Qos::Guaranteed,
            _ => return None,
        };
        return Some((qos, pod_uid(&uid.replace('_', "-"))?));
    }
    let qos = match parent {
        "burstable" => Qos::Burstable,
        "besteffort" => Qos::BestEffort,
        // A reader with a cgroup namespace of its own sees its own ancestors as `..`.
        "kubepods" | ".." => Qos::Guaranteed,
        _ => return None,
    };
    Some((qos, pod_uid(part.strip_prefix("pod")?)?))
}

/// A UUID, or the MD5 sum of a static pod's manifest.
fn pod_uid(text: &str) -> Option<String> {
    let lengths = text.split('-').map(|group| is_hex(group).then_some(group.len()));
    match lengths.collect::<Option<Vec<_>>>()?[..] {
        [8, 4, 4, 4, 12] | [32] => Some(text.to_owned()),
        _ => None,
    }
}

/// The container's id: `<id>`, `<runtime>-<id>` or `<runtime>-<id>.scope`. CRI-O's `crio-conmon-<id>` watches over a
/// container and is none.
fn container(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let (runtime, id) = part.rsplit_once('-').unwrap_or(("", part));
    (id.len() == 64 && is_hex(id) && !runtime.ends_with("conmon")).then_some(id)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";
    const SYSTEMD_UID: &str = "8f5d2c4e_1b7a_4f0e_9c3d_5a6b7c8d9e0f";
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    const ID: &str = "aa11bb22cc33dd44ee55ff660011223344556677889900aabbccddeeff001122";

    /// `U`, `S`, `H` and `I` in the path stand for the constants above.
    fn find(path: &str) -> Option<Owner> {
        owner(&path.replace('U', UID).replace('S', SYSTEMD_UID).replace('H', HASH).replace('I', ID))
    }

    #[test]
    fn the_kubelets_names_are_known() {
        let check = |path: &str, uid: &str, qos, container: Option<&str>, is_own| {
            let container_id = container.map(str::to_owned);
            let expected = Owner { pod_uid: uid.to_owned(), qos, container_id, is_own };
            assert_eq!(find(path), Some(expected), "{path}");
        };
        let burstable = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podS.slice";
        check(burstable, UID, Qos::Burstable, None, true);
        check(&format!("{burstable}/cri-containerd-I.scope"), UID, Qos::Burstable, Some(ID), true);
        check(&format!("{burstable}/crio-I.scope"), UID, Qos::Burstable, Some(ID), true);
        check(&format!("{burstable}/crio-I.scope/container"), UID, Qos::Burstable, Some(ID), false);
        check(&format!("{burstable}/crio-conmon-I.scope"), UID, Qos::Burstable, None, false);
        check(&format!("{burstable}/docker-I.scope/init.scope/x"), UID, Qos::Burstable, Some(ID), false);
        check("/kubepods.slice/kubepods-podS.slice/cri-containerd-I.scope", UID, Qos::Guaranteed, Some(ID), true);
        check("/kubepods/besteffort/podU/I", UID, Qos::BestEffort, Some(ID), true);
        check("/kubepods/podU", UID, Qos::Guaranteed, None, true);
        check("/kubepods/burstable/podH/I", HASH, Qos::Burstable, Some(ID), true);
        check("/kubepods/burstable/podU/crio-I", UID, Qos::Burstable, Some(ID), true);
        // kind, k3s, and a kubelet with --cgroup-root.
        check("/docker/I/kubelet/kubepods/burstable/podU/I", UID, Qos::Burstable, Some(ID), true);
        let kind = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
        check(&format!("{kind}/kubelet-kubepods-besteffort-podS.slice"), UID, Qos::BestEffort, None, true);
        // containerd, told the kubelet's names but not to use systemd.
        let joined = "/system.slice/containerd.service/kubepods-burstable-podS.slice:cri-containerd:I";
        check(joined, UID, Qos::Burstable, Some(ID), true);
        check("/../../../burstable/podU/I", UID, Qos::Burstable, Some(ID), true);
        check("/../../podU/I", UID, Qos::Guaranteed, Some(ID), true);
    }

    #[test]
    fn the_others_belong_to_no_pod() {
        let check = |path: &str| assert_eq!(find(path), None, "{path}");
        check("");
        check("/");
        check("/system.slice/kubelet.service");
        check("/kubepods.slice/kubepods-burstable.slice");
        check("/kubepods/burstable/podcast");
        check("/user.slice/my-podS.slice");
        check("/podU/I");
        check("/docker/I");
        check("/kubepods.slice/kubepods-podS_0.slice");
    }

    #[test]
    fn a_process_is_found_in_whichever_hierarchy_names_a_pod() {
        let check = |text: &str, expected: Option<&str>| {
            let found = owner_of_process(&text.replace('U', UID).replace('I', ID));
            assert_eq!(found.map(|owner| owner.pod_uid).as_deref(), expected, "{text}");
        };
        check("0::/kubepods/burstable/podU/I\n", Some(UID));
        check("12:cpu,cpuacct:/kubepods/podU/I\n1:name=systemd:/kubepods/podU/I\n0::/\n", Some(UID));
        check("4:cpu:/system.slice:odd\n0::/init.scope\n", None);
        check("nonsense\n", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn what_a_path_was_made_of_is_found_in_it(
            uid in "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            id in "[0-9a-f]{64}",
            class in 0..3_usize,
            systemd: bool,
            root in prop::sample::select(vec!["", "/docker/x", "/kubelet.slice"]),
            below in prop::sample::select(vec!["", "/nested", "/init.scope/app"]),
        ) {
            let (qos, dash, folder) = [
                (Qos::Guaranteed, "", ""),
                (Qos::Burstable, "-burstable", "/burstable"),
                (Qos::BestEffort, "-besteffort", "/besteffort"),
            ][class];
            let path = if systemd {
                let uid = uid.replace('-', "_");
                format!("{root}/kubepods.slice/kubepods{dash}-pod{uid}.slice/cri-containerd-{id}.scope{below}")
            } else {
                format!("{root}/kubepods{folder}/pod{uid}/{id}{below}")
            };
            let expected = Owner { pod_uid: uid, qos, container_id: Some(id), is_own: below.is_empty() };
            prop_assert_eq!(owner(&path), Some(expected));
        }

        #[test]
        fn no_text_makes_the_parser_panic(path in "(/|kubepods|-pod|pod|\\.slice|:|[0-9a-f]{8,64}|burstable|\\.\\.|\\PC){0,20}") {
            let _any_answer = (owner(&path), owner_of_process(&path));
        }
    }
}
