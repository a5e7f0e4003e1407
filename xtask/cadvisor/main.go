// cAdvisor as a daemon, for `cargo xtask bench agent`: the library at the version that Kubernetes 1.36's kubelet embeds.
// Its own daemon's module (`cmd`) is not published, so this is what that one does, with the flags that matter here.
package main

import (
	"flag"
	"log"
	"net/http"
	"strings"
	"time"

	"github.com/google/cadvisor/cache/memory"
	"github.com/google/cadvisor/container"
	v2 "github.com/google/cadvisor/info/v2"
	"github.com/google/cadvisor/manager"
	"github.com/google/cadvisor/metrics"
	"github.com/google/cadvisor/utils/sysfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/utils/clock"
)

func main() {
	// The library defines the flags of housekeeping and --docker_only itself.
	listen := flag.String("listen", "127.0.0.1:8080", "where to serve /metrics")
	storage := flag.Duration("storage_duration", 2*time.Minute, "for how long to keep figures")
	enabled := flag.String("enable_metrics", "cpu,memory,oom_event,pressure", "kinds of metrics to collect")
	labels := flag.Bool("store_container_labels", true, "turn labels of containers into labels of metrics")
	flag.Parse()

	kinds := container.MetricSet{}
	for _, kind := range strings.Split(*enabled, ",") {
		kinds[container.MetricKind(kind)] = struct{}{}
	}
	all, environment := []string{""}, []string{}
	cadvisor, err := manager.New(memory.New(*storage, nil), sysfs.NewRealSysFs(), manager.HousekeepingConfigFlags, kinds,
		http.DefaultClient, all, environment, "", 0)
	if err != nil {
		log.Fatalf("make cAdvisor's manager: %v", err)
	}
	if err := cadvisor.Start(); err != nil {
		log.Fatalf("start cAdvisor's manager: %v", err)
	}

	name := metrics.DefaultContainerLabels
	if !*labels {
		name = metrics.BaseContainerLabels(nil)
	}
	options := v2.RequestOptions{IdType: v2.TypeName, Count: 1, Recursive: true}
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		metrics.NewPrometheusCollector(cadvisor, name, kinds, clock.RealClock{}, options),
		metrics.NewPrometheusMachineCollector(cadvisor, kinds),
	)
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	log.Fatal(http.ListenAndServe(*listen, nil))
}
