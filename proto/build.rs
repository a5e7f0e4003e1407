//! Compiles the protocols without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=ebb");
    println!("cargo::rerun-if-changed=kubelet");
    println!("cargo::rerun-if-changed=ray");
    let files = ["ebb/v1/reports.proto", "kubelet/podresources/v1/api.proto", "ray/autoscaler/autoscaler.proto"];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
