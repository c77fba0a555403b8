# Sourced by the scripts of this folder.

# expect_installed PREFIX: the folders that belong to a prefix, and the licences of what is inside of the library.
expect_installed() {
  local folder file
  for folder in "$1"/*; do
    case $(basename "$folder") in
      bin | include | lib | lib64 | share) ;;
      *) echo "installed, but no folder of a prefix: $folder"; return 1 ;;
    esac
  done
  for file in LICENSE licenses/libhwy.txt; do
    [ -s "$1/share/doc/shortconv/$file" ] || { echo "not installed: share/doc/shortconv/$file"; return 1; }
  done
}

# use_pkg_config PREFIX: pkg-config finds the shortconv.pc of this prefix first.
use_pkg_config() {
  local file
  file=$(find "$1" -name shortconv.pc)
  [ -n "$file" ] || { echo "not installed: shortconv.pc"; return 1; }
  export PKG_CONFIG_PATH
  PKG_CONFIG_PATH=$(dirname "$file"):${PKG_CONFIG_PATH:-}
}
