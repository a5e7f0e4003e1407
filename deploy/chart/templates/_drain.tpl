{{/* What a drain changes of a Node, in the CEL of an admission policy; `.`: who may change that and no more. */}}
{{- define "ebb.drain.variables" -}}
- name: oldAnnotations
  expression: "oldObject.metadata.?annotations.orValue({})"
- name: newAnnotations
  expression: "object.metadata.?annotations.orValue({})"
- name: oldLabels
  expression: "oldObject.metadata.?labels.orValue({})"
- name: newLabels
  expression: "object.metadata.?labels.orValue({})"
- name: annotations
  expression: "['ebb.dev/drain', 'ebb.dev/drain-progress']"
- name: labels
  expression: "['node.kubernetes.io/exclude-from-external-load-balancers']"
- name: conditions
  expression: "['Drained', 'DrainInProgress', 'MaintenancePlanned']"
{{- end }}

{{- define "ebb.drain.validations" -}}
- expression: >-
    request.operation != 'UPDATE' || (
    {{- range $index, $field := list "configSource" "externalID" "podCIDR" "podCIDRs" "providerID" "taints" }}
    {{ if $index }}&& {{ end }}object.?spec.?{{ $field }} == oldObject.?spec.?{{ $field }}
    {{- end }})
  message: {{ . }} may change nothing of a node's spec but unschedulable
  reason: Forbidden
- expression: >-
    request.operation != 'UPDATE' || (
    {{- range $index, $field := list "addresses" "allocatable" "capacity" "config" "daemonEndpoints" "declaredFeatures" "features" "images" "nodeInfo" "phase" "runtimeHandlers" "volumesAttached" "volumesInUse" }}
    {{ if $index }}&& {{ end }}object.?status.?{{ $field }} == oldObject.?status.?{{ $field }}
    {{- end }})
  message: {{ . }} may change nothing of a node's status but conditions
  reason: Forbidden
- expression: >-
    request.operation != 'UPDATE' ||
    object.?status.?conditions.orValue([]).filter(it, !(it.type in variables.conditions)) ==
    oldObject.?status.?conditions.orValue([]).filter(it, !(it.type in variables.conditions))
  message: {{ . }} may change no condition of a node but those of a drain
  reason: Forbidden
- expression: >-
    request.operation != 'UPDATE' || (
    object.metadata.?finalizers == oldObject.metadata.?finalizers &&
    object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences)
  message: {{ . }} may not change a node's finalizers or owners
  reason: Forbidden
- expression: >-
    request.operation != 'UPDATE' || (
    variables.newLabels.all(key, key in variables.labels ||
    (key in variables.oldLabels && variables.newLabels[key] == variables.oldLabels[key])) &&
    variables.oldLabels.all(key, key in variables.labels || key in variables.newLabels))
  message: {{ . }} may change no label of a node but node.kubernetes.io/exclude-from-external-load-balancers
  reason: Forbidden
- expression: >-
    request.operation != 'UPDATE' || (
    variables.newAnnotations.all(key, key in variables.annotations ||
    (key in variables.oldAnnotations && variables.newAnnotations[key] == variables.oldAnnotations[key])) &&
    variables.oldAnnotations.all(key, key in variables.annotations || key in variables.newAnnotations))
  message: {{ . }} may change no annotation of a node but ebb.dev/drain and ebb.dev/drain-progress
  reason: Forbidden
{{- end }}
