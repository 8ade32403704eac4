#!/usr/bin/env bash
# Recover the 3D intensity that a selection holds, by Dragonfly's EMC, and measure how good it is:
#
#   jobs/orient.sh OUT [options]
#
# OUT is the output folder of `spidask run`; OUT/orientation gets EMC's files and meters.json.
#
#   --blacklist FILE  a line for each frame of photons.h5, 1 = left out; `selection`, the default,
#                     is OUT/dragonfly/blacklist.txt, and `none` leaves nothing out
#   --iterations N    of EMC (20)
#   --beta-factor F   on Dragonfly's own beta, which sharpens the orientations; it grows by 1.3
#                     every three iterations (1.5)
#   --num-div N       rotations are 0.944 / N rad apart (that of OUT/dragonfly/config.ini)
#   --threads N       (every core)
#   --halves          recover each half of the frames as well, to correlate the two: for objects
#                     that are no icosahedra
#   --into FOLDER     instead of OUT/orientation
#
# Dragonfly (GPL) lives in an environment of its own, whose Python SPIDASK_DRAGONFLY_PYTHON names;
# `.ci/dragonfly-env DIR` makes one. SPIDASK_PYTHON is the Python that has spidask (python3).
set -euo pipefail

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '4,18s/^# \{0,1\}//p' "$0" >&2; exit 2; }

blacklist=selection iterations=20 beta=1.5 num_div='' threads=$(nproc) halves='' into=''
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage
out=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
        --halves) halves=yes; shift; continue ;;
        --blacklist|--iterations|--beta-factor|--num-div|--threads|--into) [ $# -ge 2 ] || usage ;;
        *) usage ;;
    esac
    case $1 in
        --blacklist) blacklist=$2 ;;
        --iterations) iterations=$2 ;;
        --beta-factor) beta=$2 ;;
        --num-div) num_div=$2 ;;
        --threads) threads=$2 ;;
        --into) into=$2 ;;
    esac
    shift 2
done
into=${into:-$out/orientation}
jobs=$(cd "$(dirname "$0")" && pwd)
dragonfly=${SPIDASK_DRAGONFLY_PYTHON:-}
spidask=${SPIDASK_PYTHON:-python3}

for number in "$iterations" "${num_div:-1}" "$threads"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "'$number' is no number of threads, iterations or num_div"
done
[[ $beta =~ ^[0-9]*\.?[0-9]+$ ]] || fail "'$beta' is no factor on beta"
missing=()
for name in photons.h5 detector.h5 config.ini index.csv; do
    [ -e "$out/dragonfly/$name" ] || missing+=("$out/dragonfly/$name")
done
case $blacklist in
    selection) blacklist=$out/dragonfly/blacklist.txt ;;
    none) blacklist='' ;;
esac
[ -z "$blacklist" ] || [ -e "$blacklist" ] || missing+=("$blacklist")
if [ ${#missing[@]} -gt 0 ]; then
    fail "missing: ${missing[*]}; \`spidask run\` writes them up to its stage export"
fi
[ -n "$dragonfly" ] || fail "SPIDASK_DRAGONFLY_PYTHON is not set; .ci/dragonfly-env DIR makes an" \
    "environment, then set it to DIR/bin/python"
"$dragonfly" -c 'import dragonfly.recon' || fail "$dragonfly cannot import Dragonfly;" \
    ".ci/dragonfly-env DIR makes an environment that can"

# A list of its own, so that it is known later which frames these were.
mkdir -p "$into"
n_frames=$(($(wc -l < "$out/dragonfly/index.csv") - 1))
if [ -n "$blacklist" ]; then
    [ "$(wc -w < "$blacklist")" = "$n_frames" ] ||
        fail "$blacklist has $(wc -w < "$blacklist") lines for $n_frames frames in photons.h5"
    [ "$blacklist" -ef "$into/blacklist.txt" ] || cp "$blacklist" "$into/blacklist.txt"
else
    yes 0 | head -n "$n_frames" > "$into/blacklist.txt"
fi
[ "$(grep -c 0 "$into/blacklist.txt")" -ge 2 ] || fail "$into/blacklist.txt leaves fewer than 2 frames"

recover() {  # in a folder that holds its blacklist
    local to=$1 from key
    rm -rf "$to/output" "$to/EMC.log" "$to/start.h5" "$to/detector.h5" "$to/meters.json" "$to/slices.npz"
    from=$(realpath --relative-to="$to" "$out/dragonfly")
    sed -e "s|^in_photons_file *=.*|in_photons_file = $from/photons.h5|" \
        -e "s|^in_detector_file *=.*|in_detector_file = detector.h5|" \
        ${num_div:+-e "s|^num_div *=.*|num_div = $num_div|"} \
        -e "s|^beta_factor *=.*|beta_factor = $beta|" \
        -e '/^\[emc\]/a start_model_file = start.h5' "$out/dragonfly/config.ini" > "$to/config.ini"
    "$spidask" "$jobs/measure_orientation.py" "$out" "$to" --prepare
    "$dragonfly" -c 'from dragonfly.recon import main; main()' \
        -c "$to/config.ini" -t "$threads" "$iterations" > "$to/emc.out" 2>&1 ||
        fail "EMC ends with $?: $(tail -n 1 "$to/emc.out"); see $to/emc.out"
    tail -n 1 "$to/EMC.log"
}

echo "EMC: $(grep -c 0 "$into/blacklist.txt") of $n_frames frames, $iterations iterations, $threads threads"
recover "$into"
rm -rf "$into/half0" "$into/half1"
if [ -n "$halves" ]; then
    for half in 0 1; do
        mkdir "$into/half$half"
        awk -v half=$half '$1 == 0 { $1 = n++ % 2 != half } { print $1 }' \
            "$into/blacklist.txt" > "$into/half$half/blacklist.txt"
        recover "$into/half$half"
    done
fi
"$spidask" "$jobs/measure_orientation.py" "$out" "$into"
