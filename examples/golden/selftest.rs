// Replay golden decisions with the native library:
// rustc --edition 2021 selftest.rs -L models/dqn/native -l policy && LD_LIBRARY_PATH=models/dqn/native ./selftest models/dqn
use std::{env, ffi::{c_char, c_int, c_void, CStr, CString}, process::exit, ptr};

extern "C" {
    fn policy_open(handle: *mut *mut c_void) -> c_int;
    fn policy_close(handle: *mut c_void);
    fn policy_selftest_rounding(handle: *mut c_void, golden: *const c_char, decisions: *mut usize, rounded: *mut usize) -> c_int;
    fn policy_message(status: c_int) -> *const c_char;
}

fn main() {
    let folder = env::args().nth(1).expect("a model folder");
    let golden = CString::new(folder + "/native/golden.bin").unwrap();
    let (mut handle, mut decisions, mut rounded) = (ptr::null_mut(), 0, 0);
    let status = unsafe {
        match policy_open(&mut handle) {
            0 => policy_selftest_rounding(handle, golden.as_ptr(), &mut decisions, &mut rounded),
            refused => refused,
        }
    };
    unsafe { policy_close(handle) };
    if status != 0 {
        eprintln!("after {decisions} golden decisions: {}", unsafe { CStr::from_ptr(policy_message(status)) }.to_str().unwrap());
        exit(1);
    }
    println!("{decisions} golden decisions, all as they were, {rounded} of them but for rounding");
}
