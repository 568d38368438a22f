"""Wrong command lines of every command, each with a part of its error message.

FILE, DIR and LOCKED are a file, a folder and a read-only folder; GENERATOR and PHOTO are replaced
by files that a command reads.
"""

import convert_checkpoint
import estimate_cameras
import eval_metrics
import extract_shapes
import fid_evaluation
import plot_run
import prepare_photos
import render_multiview_images
import render_video
import render_video_interpolation
import viewer
from docs import gallery

VIEWERS = {
    "render_multiview_images": render_multiview_images,
    "render_video": render_video,
    "render_video_interpolation": render_video_interpolation,
    "extract_shapes": extract_shapes,
}
OF_ALL = [
    (["--no_such_flag"], "unknown flag --no_such_flag"),
    (["--output_dirr", "x"], "Did you mean '--output_dir'?"),
    (["--device", "gpu"], "--device gpu"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--output_dir"], "--output_dir: expected one argument"),
    (["--output_dir", "FILE"], "--output_dir"),
    (["--output_dir", "FILE/below"], "--output_dir"),
    (["--output_dir", "LOCKED/below"], "--output_dir"),
]
HUGE = "9" * 20  # more than 64 bits
OF_VIEWERS = [
    (["--seeds", HUGE], "is no seed"),
    (["--seeds", "9999999999999999999"], "is more than"),
    (["--seeds", "x"], "--seeds: 'x' is no seed"),
    (["--seeds"], "--seeds: expected at least one argument"),
    (["--seeds", "-1"], "--seeds"),
    (["--seeds", "9-1"], "9-1 runs backwards; write 1-9"),
    (["--seeds", "0", "--fit", "FILE"], "--fit: not allowed with --seeds"),
    (["--seeds", "0-99999999999"], "makes more than"),
    (["--psi", "nan"], "--psi: must be a number from 0 to 10"),
    (["--psi", "-1"], "--psi"),
    (["--ema", "ema3"], "--ema"),
    (["--max_batch_size", "0"], "--max_batch_size"),
    (["--curriculum", "CelebB"], "Did you mean 'CelebA'?"),
    (["--curriculum_file", "nowhere.py"], "no such file"),
    (["--fit", "nowhere.pth"], "no such file"),
    (["--fit", "FILE"], "is no checkpoint"),
    (["GENERATOR", "nowhere/generator.pth"], "no such file"),
    (["GENERATOR", "FILE"], "is no checkpoint"),
    (["GENERATOR", "DIR"], "is a folder"),
]
OF_PICTURES = [
    (["--image_size", "0"], "--image_size"),
    (["--image_size", "1e3"], "--image_size"),
    (["--image_size", HUGE], "--image_size: must be at most"),
    (["--image_size", "10000000"], "--image_size: must be at most"),
    (["--ray_step_multiplier", "0"], "--ray_step_multiplier"),
    (["--ray_step_multiplier", "1000000000000"], "--ray_step_multiplier: must be at most"),
]
OF_VIDEOS = [
    (["--num_frames", "0"], "--num_frames"),
    (["--num_frames", "100000000000"], "--num_frames: must be at most"),
    (["--fps", "-1"], "--fps"),
    (["--format", "avi"], "--format"),
    (["--format", "gif", "--fps", "60"], "--fps 60: at most 50 for gif"),
    (["--trajectory", "orbitt"], "is neither front, orbit, around nor a file. Did you mean"),
    (["--trajectory", "nowhere.csv"], "nowhere.csv"),
    (["--batch_size", "0"], "--batch_size"),
    (["--batch_size", "100000000000"], "--batch_size: must be at most"),
]
OF_COMMAND = {
    "render_multiview_images": [
        *OF_PICTURES,
        (["--yaws", "left"], "--yaws"),
        (["--yaws", "inf"], "--yaws"),
        (["--pitches"], "--pitches"),
    ],
    "render_video": [*OF_PICTURES, *OF_VIDEOS],
    "render_video_interpolation": [
        *OF_PICTURES,
        *OF_VIDEOS,
        (["--seeds", "3"], "3 is only one object"),
    ],
    "extract_shapes": [
        (["--voxel_resolution", "3"], "--voxel_resolution: must be a whole number of at least 8"),
        (["--voxel_resolution", "1000000"], "--voxel_resolution: must be at most 2048"),
        (["--cube_size", "0"], "--cube_size"),
        (["--cube_size", "nan"], "--cube_size"),
        (["--cube_size", "1e300"], "--cube_size"),
        (["--cube_size", "1e-300"], "--cube_size"),
        (["--center", "1e300", "0", "0"], "--center"),
        (["--seed", "1", "--seeds", "1"], "not allowed with"),
        (["--format", "mrc,gbl"], "'gbl' is none of mrc,ply,obj,stl,glb. Did you mean"),
        (["--format", ""], "--format: '' is none of"),
        (["--level", "x"], "--level"),
        (["--center", "0", "0"], "--center"),
    ],
}
OF_INVERSION = [
    *OF_PICTURES,
    (["--fit_size", "0"], "--fit_size"),
    (["--fit_size", "9999999"], "--fit_size: must be at most"),
    (["--candidates", "99999999999999"], "--candidates: must be at most"),
    (["--fov", "0"], "--fov"),
    (["--fov", "200"], "--fov"),
    (["--crop", "big"], "--crop"),
    (["--mask", "nowhere.png"], "nowhere.png"),
    (["--mask", "FILE"], "FILE"),
    (["PHOTO", "nowhere.jpg"], "nowhere.jpg"),
    (["PHOTO", "FILE"], "FILE"),
    (["PHOTO", "DIR"], "DIR"),
]
OF_TRAINING = [
    (["--set", "img_size=64x"], "img_size"),
    (["--set", "0.img_size=3"], "has levels for"),
    (["--set", "0.img_size=4096"], "has levels for"),
    (["--set", "0.batch_size=-1"], "batch_size"),
    (["--set", "0.num_steps=1"], "num_steps"),
    (["--set", "0.num_steps=10001"], "at most 10000"),
    (["--set", "0.gen_lr=nan"], "gen_lr"),
    (["--set", "num_images=99999999999"], "at most 1e+06"),
    (["--set", "hidden_dim=1000000"], "needs about"),
    (["--set", f"latent_dim={HUGE}"], "at most 1.04858e+06"),
    (["--set", "num_layers=100000000"], "at most 1000"),
    (["--set", "preview_size=10000000"], "preview_size 10000000: needs more than"),
    (["--set", f"0.batch_size={HUGE}"], "at most 2.14748e+09"),
    (["--set", "0.batch_size=100000000"], "try --set 0.batch_split="),
    (["--set", f"fov={'(' * 9000}"], "fov"),
    (["--set", "0.batch_split=99"], "batch_split"),
    (["--set", "fov=999"], "fov"),
    (["--set", "no_such_key=1"], "unknown key"),
    (["--set", "fov"], "expected KEY=VALUE"),
    (["--set", "img_size=64"], "img_size is a key of stages: --set 0.img_size=64"),
    (["--set", "7.gen_lr=1"], "has no stage 7"),
    (["--max_steps", "-1"], "--max_steps"),
    (["--n_epochs", "0"], "--n_epochs"),
    (["--sample_interval", "0"], "--sample_interval"),
    (["--keep", "0"], "--keep"),
    (["--state_seconds", "-1"], "--state_seconds"),
    (["--state_seconds", "inf"], "--state_seconds"),
    (["--seed", "-1"], "--seed"),
    (["--seed", HUGE], "--seed: must be at most"),
    (["--set_step", HUGE], "--set_step: must be at most"),
    (["--port", "99999"], "--port"),
    (["--num_processes", "0"], "--num_processes"),
    (["--num_processes", "100000"], "--num_processes 100000: at most 256"),
    (["--eval_images", "99999999999"], "--eval_images: must be at most"),
    (["--inception_weights", "nowhere"], "--inception_weights nowhere: no such file"),
    (["--inception_weights", "FILE"], "is not the published Inception network"),
    (["--output_dir", "a" * 300], "(File name too long)"),
    (["--dataset_path", "nowhere"], "nowhere"),
    (["--dataset_path", "DIR"], "no pictures"),
    (["--dataset_path", "FILE"], "no .zip"),
    (["--cache_dir", "FILE"], "--cache_dir"),
    (["--load_dir", "nowhere"], "--load_dir"),
    (["--load_dir", "EXPORTED"], "holds only exported networks"),
    (["--load_dir", "DIR"], "no training_state.pth"),
    (["--load_dir", "FILE"], "--load_dir"),
    (["--curriculum", "Demmo"], "Did you mean 'Demo'?"),
    (["--curriculum_file", "FILE"], "--curriculum_file"),
]
OF_CURRICULA = [
    (["--curriculum", "CelebB"], "Did you mean 'CelebA'?"),
    (["--curriculum_file", "nowhere.py"], "no such file"),
    (["--curriculum_file", "FILE"], "--curriculum_file"),
]
WITHOUT_DEVICE = [case for case in OF_ALL if "--device" not in case[0]]
MEASURING = ["--real_image_dir", "reals", "--inception_weights"]
OF_MEASURING = [
    (["--num_images", "0"], "--num_images"),
    (["--num_images", "99999999999"], "--num_images: must be at most"),
    (["--num_objects", "0"], "--num_objects"),
    (["--num_objects", "99999999999999"], "--num_objects: must be at most"),
    (["--consistency_size", "1000000"], "--consistency_size: must be at most"),
    (["--consistency_size", HUGE], "--consistency_size: must be at most"),
    (["--psi", "2"], "--psi"),
    (["--seed", "-1"], "--seed"),
    (["--seed", HUGE], "--seed: must be at most"),
    (["--protocol", "fast"], "--protocol"),
    (["--precision", "slow"], "--precision"),
    (["--max_batch_size", "0"], "--max_batch_size"),
    (["--ema", "ema3"], "--ema"),
    (["--real_image_dir", "nowhere"], "nowhere"),
    (["--real_image_dir", "DIR"], "no pictures"),
    (["--real_image_dir", "FILE"], "is no folder"),
    ([*MEASURING, "nowhere"], "--inception_weights nowhere: no such file"),
    ([*MEASURING, "FILE"], "is not the published Inception network"),
    ([*MEASURING, "FILE", "--any_inception_weights"], "FILE: is no checkpoint"),
    ([*MEASURING, "FILE", "--any_inception_weights", "--num_processes", "999"], "at most 256"),
    (["--num_processes", "0"], "--num_processes"),
    (["--port", "-1"], "--port"),
    (["GENERATOR", "nowhere/generator.pth"], "no such file"),
    (["GENERATOR", "FILE"], "is no checkpoint"),
    (["GENERATOR", "DIR"], "is a folder"),
]
OF_VIEWS = [
    (["--port", "99999"], "--port"),
    (["--image_size", "0"], "--image_size"),
    (["--image_size", HUGE], "--image_size"),
    (["--mix", "x"], "--mix"),
    (["--seed", "5", "--fit", "FILE"], "--fit: not allowed with --seed"),
    (["--mix", "2"], "--mix"),
    (["--seed", HUGE], "--seed"),
    (["--to_seed", "-1"], "--to_seed"),
    (["--pitch", "nan"], "--pitch"),
    (["--yaw", "1e99"], "--yaw"),
    (["--fov", "0"], "--fov"),
    (["--target", "0", "0"], "--target"),
    (["--target", "9", "9", "9"], "--target"),
    (["--aspect", "nan"], "--aspect"),
    (["--show", "x"], "--show"),
    (["--num_steps", "1"], "--num_steps"),
    (["--psi", "-1"], "--psi"),
    (["--ema", "ema3"], "--ema"),
    (["--fit", "nowhere"], "no such file"),
    (["--fit", "FILE"], "is no checkpoint"),
    (["GENERATOR", "nowhere/generator.pth"], "no such file"),
    (["GENERATOR", "FILE"], "is no checkpoint"),
]
OF_REAL_IMAGES = [
    (["--dataset", "CelebB"], "Did you mean 'CelebA'?"),
    (["--dataset", "CelebA", "--dataset_path", "nowhere"], "nowhere"),
    (["--dataset", "Cats", "--dataset_path", "DIR"], "no pictures"),
    (["--dataset", "Cats", "--dataset_path", "FILE"], "no .zip"),
    (["--img_size", "0"], "--img_size"),
    (["--img_size", "1000000"], "--img_size: must be at most"),
    (["--img_size", HUGE], "--img_size: must be at most"),
    (["--num_imgs", "-1"], "--num_imgs"),
    (["--protocol", "fast"], "--protocol"),
]
OF_OTHERS = {  # the command, what is right, and what is wrong
    eval_metrics: (  # which may keep what it knows of real images in its cache
        ["GENERATOR", "--consistency", "--cache_dir", "../cache"],
        [*OF_ALL, *OF_CURRICULA, *OF_MEASURING],
    ),
    fid_evaluation: (["--dataset", "toycars"], [*WITHOUT_DEVICE, *OF_REAL_IMAGES]),
    viewer: (["GENERATOR", "--save_picture"], [*OF_ALL, *OF_CURRICULA, *OF_VIEWS]),
    convert_checkpoint: (
        ["published/generator.pth"],
        [
            ([], "required"),
            (["out", "--no_such_flag"], "unknown flag"),
            (["FILE"], "OUT FILE: cannot be made"),
            (["FILE/below"], "OUT FILE/below: cannot be made"),
            (["LOCKED/below"], "OUT LOCKED/below: cannot be made"),
            (["published"], "holds generator.pth already"),
            *((["out", *words], expected) for words, expected in OF_CURRICULA),
        ],
    ),
    plot_run: (
        ["run"],
        [
            (["--no_such_flag"], "unknown flag"),
            (["--output"], "--output: expected one argument"),
            (["--output", "DIR"], "--output DIR: is a folder"),
            (["--output", "FILE/below.png"], "--output FILE: cannot be made"),
            (["--output", "LOCKED/below/run.png"], "--output LOCKED/below: cannot be made"),
            (["--output", "a" * 300], "(File name too long)"),
        ],
    ),
    estimate_cameras: (
        ["run"],
        [
            ([], "no such file"),
            (["--no_such_flag"], "unknown flag"),
            (["--image_size", "0"], "--image_size"),
            (["--num_photos", "0"], "--num_photos"),
            (["--device", "gpu"], "--device gpu"),
            (["--ema", "ema3"], "--ema"),
        ],
    ),
    prepare_photos: (
        ["reals"],
        [
            ([], "required"),
            (["a.zip"], "required: --kind"),
            (["a.zip", "--kind", "round"], "--kind: 'round' is none of"),
            (["a.tar", "--kind", "crop"], "a.tar: the output must be a .zip"),
            (["nowhere/a.zip", "--kind", "crop"], "there is no folder nowhere"),
            (["a.zip", "--kind", "crop", "--size", "8"], "--size"),
            (["a.zip", "--kind", "crop", "--share", "2"], "--share"),
            (["a.zip", "--kind", "crop", "--cascade", "FILE"], "is for --kind face"),
            (["a.zip", "--kind", "face", "--cascade", "FILE"], "no cascade"),
            (["a.zip", "--kind", "crop", "--no_such_flag"], "unknown flag"),
        ],
    ),
    gallery: (
        [],
        [
            (["--no_such_flag"], "unknown flag"),
            (["strip.pn"], "Did you mean 'strip.png'?"),
            (["strip.png"], "start in the repository's root"),
            (["--run", "nowhere"], "nowhere"),
            (["--run", "DIR"], "no such file"),
            (["--run", "FILE"], "FILE"),
            (["--run", "DIR", "strip.png"], "all pictures change with the run"),
        ],
    ),
}
WITHOUT_A_SOURCE = [
    (plot_run, [], "required"),
    (plot_run, ["nowhere"], "nowhere"),
    (plot_run, ["DIR"], "DIR"),
    (estimate_cameras, [], "required"),
    (estimate_cameras, ["nowhere"], "no such file"),
    (estimate_cameras, ["DIR"], "no such file"),
    (convert_checkpoint, ["nowhere", "out"], "nowhere"),
    (convert_checkpoint, ["FILE", "out"], "FILE: is no checkpoint"),
    (convert_checkpoint, ["DIR", "out"], "no such file"),
    (eval_metrics, ["GENERATOR"], "nothing to measure"),
    (prepare_photos, ["nowhere", "a.zip", "--kind", "crop"], "nowhere"),
    (prepare_photos, ["DIR", "a.zip", "--kind", "crop"], "no pictures"),
    (viewer, [], "required"),
]
