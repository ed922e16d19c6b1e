"""Distribution points: folders, web servers and buckets that hold the files of packages."""
