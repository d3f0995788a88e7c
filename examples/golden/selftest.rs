// Replay golden decisions with the native library:
// rustc --edition 2021 selftest.rs -L models/dqn/native -l policy && LD_LIBRARY_PATH=models/dqn/native ./selftest models/dqn
use std::{env, ffi::c_void, ffi::CStr, fs, os::raw::c_char, ptr};

#[repr(C)]
#[allow(dead_code)]
struct Array { name: *const c_char, dtype: *const c_char, bytes: usize, dimensions: usize, shape: *const i64, next: i32 }
extern "C" {
    fn policy_open(handle: *mut *mut c_void) -> i32;
    fn policy_reset(handle: *mut c_void) -> i32;
    fn policy_close(handle: *mut c_void);
    fn policy_inputs(arrays: *mut *const Array) -> usize;
    fn policy_outputs(arrays: *mut *const Array) -> usize;
    fn policy_observations() -> usize;
    fn policy_action_outputs() -> usize;
    fn policy_values() -> usize;
    fn policy_decide(handle: *mut c_void, seen: *const *const u8, actions: *const *mut u8, values: *const *mut u8) -> i32;
}

fn number(bytes: &[u8], dtype: &str) -> f64 {
    if dtype == "float32" { f32::from_le_bytes(bytes.try_into().unwrap()) as f64 } else { f64::from_le_bytes(bytes.try_into().unwrap()) }
}

fn main() {
    let file = fs::read(env::args().nth(1).expect("a model folder") + "/golden.safetensors").unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(file[8..start].to_vec()).unwrap();
    let tensor = |name: &str| { // all rows of a tensor
        let at = header.split(&format!("\"{name}\":")).nth(1).expect(name).split("\"data_offsets\":[").nth(1).unwrap();
        let ends: Vec<usize> = at.split(']').next().unwrap().split(',').map(|end| start + end.trim().parse::<usize>().unwrap()).collect();
        &file[ends[0]..ends[1]]
    };
    let (mut inputs, mut outputs, mut handle, mut rounded) = (ptr::null(), ptr::null(), ptr::null_mut(), 0);
    let (ties, tolerance) = (tensor("tie"), number(tensor("tolerance"), "float64"));
    unsafe {
        policy_inputs(&mut inputs);
        policy_outputs(&mut outputs);
        assert_eq!(policy_open(&mut handle), 0, "the library does not run here");
        let (seen, actions, decided) = (policy_observations(), policy_action_outputs(), policy_action_outputs() + policy_values());
        let text = |word| CStr::from_ptr(word).to_str().unwrap();
        for row in 0..ties.len() {
            if tensor("input/is_init")[row] == 1 { policy_reset(handle); }
            // Copies, as what is decided on must be aligned.
            let shown: Vec<Vec<u64>> = (0..seen).map(|i| {
                let array = &*inputs.add(i);
                let mut copy = vec![0u64; array.bytes / 8 + 1];
                let from = tensor(&format!("input/{}", text(array.name)))[row * array.bytes..].as_ptr();
                ptr::copy_nonoverlapping(from, copy.as_mut_ptr() as *mut u8, array.bytes);
                copy
            }).collect();
            let mut made: Vec<Vec<u64>> = (0..decided).map(|i| vec![0u64; (*outputs.add(i)).bytes / 8 + 1]).collect();
            let given: Vec<*const u8> = shown.iter().map(|part| part.as_ptr() as *const u8).collect();
            let places: Vec<*mut u8> = made.iter_mut().map(|part| part.as_mut_ptr() as *mut u8).collect();
            assert_eq!(policy_decide(handle, given.as_ptr(), places.as_ptr(), places[actions..].as_ptr()), 0);
            let mut same = true;
            for i in 0..decided {
                let array = &*outputs.add(i);
                let (name, dtype) = (text(array.name), text(array.dtype));
                let expected = &tensor(&format!("output/{name}"))[row * array.bytes..(row + 1) * array.bytes];
                let found = std::slice::from_raw_parts(places[i], array.bytes);
                if found == expected { continue; }
                same = false;
                let size = if dtype == "float64" { 8 } else { 4 };
                let right = if dtype.starts_with("float") {
                    found.chunks(size).zip(expected.chunks(size)).all(|(one, other)| {
                        let (one, other) = (number(one, dtype), number(other, dtype));
                        let scale = if other.is_finite() { other.abs().max(1.0) } else { 1.0 };
                        one == other || (one - other).abs() <= tolerance * scale
                    })
                } else { ties[row] == 1 };
                assert!(right, "decision {row}: {name}: damage, as no rounding explains it");
            }
            rounded += !same as usize;
        }
        policy_close(handle);
    }
    println!("{} golden decisions, all as they were, {rounded} of them but for rounding", ties.len());
}
