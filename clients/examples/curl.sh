#!/bin/sh
# Segments one photo with curl. Usage: curl.sh PHOTO [MODEL] [SERVER]
set -eu
photo=${1:?usage: curl.sh PHOTO [MODEL] [SERVER]}
model=${2:-icnet}
server=${3:-localhost:8000}
url="http://$server/v2/models/$model"

echo "classes:"
curl --fail-with-body -sS "$url/classes"
echo

# Class ids as an indexed PNG, in the photo's own size; -D - shows model, version and timings.
curl --fail-with-body -sS -D - --data-binary "@$photo" "$url/segment" -o mask.png

# The photo with the classes' colours over it.
curl --fail-with-body -sS --data-binary "@$photo" "$url/segment?format=overlay" -o overlay.png

# The same as JPEG with a legend; the outlines of all regions; two formats in one response.
curl --fail-with-body -sS --data-binary "@$photo" \
    "$url/segment?format=overlay&image=jpeg&opacity=0.6&legend=true" -o overlay.jpg
curl --fail-with-body -sS --data-binary "@$photo" \
    "$url/segment?format=polygons&tolerance=1.5" -o regions.geojson
curl --fail-with-body -sS --data-binary "@$photo" \
    "$url/segment?format=png,stats" -o parts.multipart

echo "shares of the classes:"
curl --fail-with-body -sS --data-binary "@$photo" "$url/segment?format=stats"
echo
echo "wrote mask.png, overlay.png, overlay.jpg, regions.geojson and parts.multipart"
