//! A fake `libcuda.so.1`: functions of CUDA's driver API that launch kernels, under their real names. They launch nothing
//! and succeed. It knows nothing of Ebb. Like an older driver's library, it lacks `cuLaunchKernelEx`.

use std::hint::black_box;
use std::os::raw::{c_int, c_void};

const CUDA_SUCCESS: c_int = 0;

/// The functions have more arguments, which in C's calling convention a callee is free not to look at.
macro_rules! functions {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(function: *mut c_void) -> c_int {
            // Different for each, or the linker could make one of them all.
            black_box((function, stringify!($name)));
            CUDA_SUCCESS
        }
    )*};
}

functions! {
    cuGraphLaunch cuGraphLaunch_ptsz
    cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz
    cuLaunchKernel cuLaunchKernel_ptsz
}
