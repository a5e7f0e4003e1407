//! Compiles the protocols without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=ebb");
    println!("cargo::rerun-if-changed=kubelet");
    let descriptors = protox::compile(["ebb/v1/reports.proto", "kubelet/podresources/v1/api.proto"], ["."])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
