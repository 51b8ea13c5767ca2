"""Which kinds of files FFmpeg may open.

FFmpeg recognises a file by its content, and some kinds name other files to read: playlists, lists
of files, scripts, numbered images. A text file called `clip.mp4` would show the frames of its
neighbour. So only containers that hold their own media are opened.
"""

from __future__ import annotations

_VIDEO = """
    apng asf asf_o avi cine dhav dv flv gif gxf ivf kux live_flv matroska mov mpeg mpegts mpjpeg mxf
    nsv nut nuv ogg pva r3d rm swf ty wtv yuv4mpegpipe
"""
_RAW = """
    apv av1 avs2 avs3 cavsvideo dirac dnxhd evc h261 h263 h264 hevc ingenient ipu m4v mjpeg
    mjpeg_2000 mpegvideo obu vc1 vc1test vvc
"""
# They hold no video, but what they hold can be said.
_AUDIO = "aac ac3 aiff amr ape au caf dts eac3 flac mp3 tta w64 wav wv"

CONTAINERS = (*_VIDEO.split(), *_RAW.split(), *_AUDIO.split())
"""FFmpeg's names of the containers and raw streams that are opened."""
